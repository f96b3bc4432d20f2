//! Commands that were refused before login: a person who meets one gets no mail, and only log and
//! metric tell the operator.
//!
//! In: what [`crate::proto`] refused. Out: a count for each, and a line as [`crate::log::sample`] lets it,
//! at level debug otherwise. **Invariant:** a line holds no word of the client's. A command's name
//! is one out of a list, since a word of a client that lost its place may be a piece of a password.

use strum::VariantArray as _;

use super::Context;
use super::close::{Session, session_id};
use crate::proto::imap::command::Verb;
use crate::proto::imap::dialogue::Refused;

/// The label and log field `command` of a line without a tag that can be answered.
pub const UNTAGGED: &str = "untagged";

/// Kinds of refusals, of which each is sampled for itself.
pub(super) const KINDS: usize = Verb::VARIANTS.len() + 1;

/// Counts and logs.
pub fn report(refused: &[Refused], session: &Session, ctx: &Context) {
    for Refused { verb, name, answer } in refused {
        ctx.metrics.command_refused(*verb);
        let command = name.unwrap_or(verb.map_or(UNTAGGED, <&str>::from));
        let kind = verb.map_or(0, |verb| 1 + verb as usize);
        let not_logged = ctx.shared.refused.on(kind, session.client.ip());
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    session = session_id(session.id),
                    client = %session.client,
                    command,
                    answer,
                    not_logged,
                    "command refused before login"
                )
            };
        }
        match not_logged {
            Some(_) => line!(info),
            None => line!(debug),
        }
    }
}
