//! What libraries warn of, in our words and by sample.
//!
//! In: events that are not ours, at level WARN or ERROR. Out: none of them, but one of ours of its [`Kind`], with theirs as
//! `said`. Most come from the DNS resolver, one for each packet that is no answer, so that whoever can send it packets
//! could fill the log; and what they say is for those who wrote it. Below WARN they pass as they are.

use std::fmt::{Debug, Write as _};
use std::net::Ipv4Addr;

use strum::VariantArray as _;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use super::sample::Sampled;
use super::{LOGIN, SESSION, printable};
use crate::text::without_numbers;

#[derive(Clone, Copy, Debug, Eq, PartialEq, strum::VariantArray)]
enum Kind {
    /// A line of a file that the resolver reads.
    File,
    /// A packet that answers nothing that was asked.
    Packet,
    Other,
}

impl Kind {
    /// `None`: it is ours.
    fn of(meta: &Metadata<'_>) -> Option<Self> {
        let target = meta.target();
        let library = target.split("::").next().unwrap_or_default();
        match library {
            "imaps_proxy" | "legacy_imap" | LOGIN | SESSION => None,
            "hickory_resolver" if target.contains("::system_conf") => Some(Self::File),
            "hickory_net" if target.contains("::udp") || target.contains("::tcp") => {
                Some(Self::Packet)
            }
            _ => Some(Self::Other),
        }
    }
}

/// Stands between those who log and the log.
#[derive(Debug)]
pub struct Libraries(Sampled);

impl Default for Libraries {
    fn default() -> Self {
        Self(Sampled::new(Kind::VARIANTS.len()))
    }
}

impl<S: Subscriber> Layer<S> for Libraries {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let meta = event.metadata();
        if *meta.level() > Level::WARN {
            return true;
        }
        let Some(kind) = Kind::of(meta) else { return true };
        if let Some(not_logged) = self.0.on(kind as usize, Ipv4Addr::UNSPECIFIED.into()) {
            say(kind, event, not_logged);
        }
        false
    }
}

fn say(kind: Kind, event: &Event<'_>, not_logged: u64) {
    let mut words = Words::default();
    event.record(&mut words);
    let said = printable(without_numbers(words.0).as_bytes());
    match kind {
        Kind::File => tracing::warn!(
            said,
            not_logged,
            "a line of /etc/resolv.conf can't be read and does not count"
        ),
        Kind::Packet => tracing::warn!(
            said,
            not_logged,
            "what came from a DNS server was no answer to the question, and was ignored: it was late, or forged"
        ),
        Kind::Other => {
            let library = event.metadata().target();
            tracing::warn!(library, said, not_logged, "a library of the proxy complains");
        }
    }
}

/// The message, then each field with its name.
#[derive(Default)]
struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let blank = if self.0.is_empty() { "" } else { " " };
        // A String takes everything.
        let _ = match field.name() {
            "message" => write!(self.0, "{blank}{value:?}"),
            name => write!(self.0, "{blank}{name}={value:?}"),
        };
    }
}
