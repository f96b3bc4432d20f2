//! The way from a server's certificate to a root, out of what lies in its file.
//!
//! In: [`Facts`], the server's first, the others in any order, and the time. Out: [`Path`]: the
//! certificates that lead on, one after the other, and those that are left over; and what to send.
//! Standards: RFC 5280 §6.1; RFC 8446 §4.4.2, by which clients have to be prepared for any order
//! and for needless certificates, and RFC 5246 §7.4.2, by which they do not.
//! A step leads to a CA of the issuer's name whose key fits the signature, if a client would take that
//! CA: within its dates, without a weak key or a weak signature of its own.
//! Not here: what is said of it (`complaints`), and whether a client knows the root.

use super::facts::Facts;

/// The way, and what is not on it.
pub struct Path<'a> {
    /// From the server's certificate on, each issued by the next.
    pub steps: Vec<&'a Facts>,
    /// What lies beside, in the order of the file.
    pub spare: Vec<&'a Facts>,
    /// Of the spare ones that which has the name of the last step's issuer, and why it is not it.
    pub broken: Option<(&'a Facts, Unfit)>,
}

/// Why no step leads to a certificate.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unfit {
    Expired,
    NotYetValid,
    WeakKey,
    WeakSignature,
    NotCa,
    /// It has the name, and another key.
    Namesake,
}

impl<'a> Path<'a> {
    /// Empty for an empty chain.
    pub fn of(chain: &'a [Facts], now: i64) -> Self {
        let mut steps: Vec<&Facts> = chain.iter().take(1).collect();
        let mut spare: Vec<&Facts> = chain.iter().skip(1).collect();
        let mut broken = None;
        while let Some(last) = steps.last().filter(|last| !last.is_self_issued()) {
            let named = |at: &usize| last.is_issued_by(spare[*at]);
            let mut judged =
                (0..spare.len()).filter(named).map(|at| (at, unfit(last, spare[at], now)));
            let mut first = None;
            let fit = judged.find(|(at, why)| {
                first = first.or(why.map(|why| (spare[*at], why)));
                why.is_none()
            });
            let Some((at, _)) = fit else {
                broken = first;
                break;
            };
            steps.push(spare.remove(at));
        }
        Self { steps, spare, broken }
    }

    /// Whether the server's certificate has its issuer beside it, or needs none.
    pub fn leads_on(&self) -> bool {
        self.steps.len() > 1 || self.steps.first().is_some_and(|leaf| leaf.is_self_issued())
    }
}

/// Why `issuer`, which has the name, did not issue `facts` for a client.
fn unfit(facts: &Facts, issuer: &Facts, now: i64) -> Option<Unfit> {
    if let Some(why) = unfit_alone(issuer, now) {
        return Some(why);
    }
    // Before version 3 no certificate could say whether it is a CA's.
    if !issuer.is_ca && issuer.version >= 3 {
        return Some(Unfit::NotCa);
    }
    (!facts.may_be_signed_by(issuer)).then_some(Unfit::Namesake)
}

/// What is wrong with a certificate of a chain, whatever it issued.
pub fn unfit_alone(facts: &Facts, now: i64) -> Option<Unfit> {
    if now > facts.not_after {
        Some(Unfit::Expired)
    } else if now < facts.not_before {
        Some(Unfit::NotYetValid)
    } else if facts.weak_rsa().is_some() {
        Some(Unfit::WeakKey)
    } else if facts.weak_signature && !facts.is_self_issued() {
        // The signature of a root is not looked at: it is trusted because it is known.
        Some(Unfit::WeakSignature)
    } else {
        None
    }
}

/// The issuer of the server's certificate, if it lies beside it and ends before it does.
pub fn ends_first(chain: &[Facts]) -> Option<&Facts> {
    let (leaf, rest) = chain.split_first().filter(|(leaf, _)| !leaf.is_self_issued())?;
    let named = || rest.iter().filter(|one| leaf.is_issued_by(one));
    // Asked at every look, so signatures last.
    if named().all(|one| one.not_after >= leaf.not_after) {
        return None;
    }
    let fit = named().filter(|one| unfit(leaf, one, one.not_after).is_none());
    fit.max_by_key(|one| one.not_after).filter(|one| one.not_after < leaf.not_after)
}

/// Whether everything of `chain` is to be sent as it stands.
pub fn is_tidy(chain: &[Facts], now: i64) -> bool {
    let all_valid = chain.iter().skip(1).all(|facts| now <= facts.not_after);
    // By name, since this is asked at every look; only what is not tidy is looked at closely.
    all_valid
        && chain.windows(2).all(|step| step[0].is_issued_by(&step[1]) && !step[0].is_self_issued())
}

/// What clients are sent: the way first, then what may lead to another root. Nothing twice, and
/// nothing expired unless that may be the one issuer.
pub fn to_send(chain: &[Facts], now: i64) -> impl Iterator<Item = &Facts> {
    let Path { steps, spare, broken } = Path::of(chain, now);
    let needed =
        |facts: &Facts| steps.len() == 1 && broken.is_some_and(|(one, _)| std::ptr::eq(one, facts));
    let mut sent: Vec<&Facts> = steps.clone();
    for facts in spare {
        let known = sent.iter().any(|one| one.der == facts.der);
        if !known && (now <= facts.not_after || needed(facts)) {
            sent.push(facts);
        }
    }
    sent.into_iter()
}
