//! Random scripts, whose own generator says what is true after each step, and babble, of which only the cuts are known.

use proptest::prelude::*;

use super::*;

/// What a well-behaved client and backend do, one after the other.
#[derive(Clone, Debug)]
enum Act {
    /// Commands in one go, answered in the order given by the keys.
    Plain(Vec<(u8, bool)>),
    /// A message with literals, each `~` or not, and what they hold.
    Fetch(Vec<(bool, Vec<u8>)>),
    Append {
        sync: bool,
        refuse: bool,
        data: Vec<u8>,
    },
    Idle(u8),
}

struct Step {
    direction: Direction,
    bytes: Vec<u8>,
    /// What is true behind the last byte of it; inside it, nothing may be interrupted.
    may: bool,
    idle: bool,
    completed: usize,
}

/// Bytes that want to be taken for lines.
fn nasty() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        Just(b"x COMPRESS DEFLATE\r\n".to_vec()),
        Just(b"t0 OK\r\n".to_vec()),
        Just(b"* CAPABILITY STARTTLS\r\n".to_vec()),
        Just(b"DONE\r\n+ \r\n".to_vec()),
        Just(b"a b {7}\r\n".to_vec()),
        prop::collection::vec(any::<u8>(), 0..8),
    ];
    prop::collection::vec(line, 0..5).prop_map(|lines| lines.concat())
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        prop::collection::vec(any::<(u8, bool)>(), 1..6).prop_map(Act::Plain),
        prop::collection::vec((any::<bool>(), nasty()), 1..4).prop_map(Act::Fetch),
        (any::<bool>(), any::<bool>(), nasty()).prop_map(|(sync, refuse, data)| Act::Append {
            sync,
            refuse,
            data
        }),
        (0..3_u8).prop_map(Act::Idle),
    ]
}

#[derive(Default)]
struct Script {
    steps: Vec<Step>,
    tags: usize,
    completed: usize,
}

impl Script {
    fn say(&mut self, direction: Direction, bytes: impl AsRef<[u8]>, may: bool, idle: bool) {
        let bytes = bytes.as_ref().to_vec();
        self.steps.push(Step { direction, bytes, may, idle, completed: self.completed });
    }

    fn play(&mut self, act: &Act) {
        self.tags += 1;
        let tag = format!("t{}", self.tags % 3);
        match act {
            Act::Plain(keys) => {
                let commands: String =
                    (0..keys.len()).map(|n| format!("{tag}.{n} UID SEARCH ALL {{x\r\n")).collect();
                self.say(ClientToBackend, commands, false, false);
                let mut order: Vec<usize> = (0..keys.len()).collect();
                order.sort_by_key(|&n| keys[n].0);
                for (done, &n) in order.iter().enumerate() {
                    if keys[n].1 {
                        self.say(BackendToClient, "* SEARCH 1 2 3\r\n* OK x {9}\r\n", false, false);
                    }
                    self.completed += 1;
                    let last = done + 1 == keys.len();
                    self.say(BackendToClient, format!("{tag}.{n} OK {{3}}\r\n"), last, false);
                }
            }
            Act::Fetch(parts) => {
                self.say(ClientToBackend, format!("{tag} FETCH 1 ALL\r\n"), false, false);
                let mut data = b"* 1 FETCH (".to_vec();
                for (binary, part) in parts {
                    let tilde = if *binary { "~" } else { "" };
                    data.extend(format!("X {tilde}{{{}}}\r\n", part.len()).bytes());
                    data.extend_from_slice(part);
                }
                data.extend_from_slice(b" Y)\r\n");
                self.say(BackendToClient, data, false, false);
                self.completed += 1;
                self.say(BackendToClient, format!("{tag} OK\r\n"), true, false);
            }
            Act::Append { sync, refuse, data } => {
                let plus = if *sync { "" } else { "+" };
                let head = format!("{tag} APPEND x {{{}{plus}}}\r\n", data.len());
                self.say(ClientToBackend, head, false, false);
                let no = format!("{tag} NO x\r\n");
                let rest = [data, &b"\r\n"[..]].concat();
                match (sync, refuse) {
                    (true, true) => {
                        self.completed += 1;
                        self.say(BackendToClient, no, true, false);
                    }
                    (false, true) => {
                        self.completed += 1;
                        self.say(BackendToClient, no, false, false);
                        self.say(ClientToBackend, rest, true, false);
                    }
                    (_, false) => {
                        if *sync {
                            self.say(BackendToClient, "+ go\r\n", false, false);
                        }
                        self.say(ClientToBackend, rest, false, false);
                        self.completed += 1;
                        self.say(BackendToClient, format!("{tag} OK\r\n"), true, false);
                    }
                }
            }
            Act::Idle(events) => {
                self.say(ClientToBackend, format!("{tag} IDLE\r\n"), false, false);
                self.completed += 1;
                self.say(BackendToClient, "+ idling\r\n", true, true);
                for n in 0..*events {
                    self.say(BackendToClient, format!("* {n} EXISTS\r\n"), true, true);
                }
                self.say(ClientToBackend, "DONE\r\n", false, false);
                self.say(BackendToClient, format!("{tag} OK\r\n"), true, false);
            }
        }
    }
}

/// Words of both languages, in no order.
fn babble(words: &'static [&'static [u8]]) -> impl Strategy<Value = Vec<(bool, Vec<u8>)>> {
    let word = prop_oneof![9 => prop::sample::select(words).prop_map(<[u8]>::to_vec),
        1 => prop::collection::vec(any::<u8>(), 1..3)];
    let said = prop::collection::vec(word, 1..14).prop_map(|words| words.concat());
    prop::collection::vec((any::<bool>(), said), 1..8)
}

const HARMLESS: &[&[u8]] = &[
    b"a ",
    b"b ",
    b"a",
    b" ",
    b"\r\n",
    b"\n",
    b"\r",
    b"a NOOP\r\n",
    b"a IDLE\r\n",
    b"DONE\r\n",
    b"+ \r\n",
    b"* ",
    b"a OK\r\n",
    b"b NO x",
    b"* BYE x\r\n",
    b"{5}\r\n",
    b"{3+}\r\n",
    b"{0}\r\n",
    b"{0+}",
    b"~{2}\r\n",
    b"{5-}",
    b"{}",
    b"{",
    b"}",
    b"99999999999999999999",
    b"\"",
    b"\0",
    b"\xff",
    b"a APPEND x ",
    b"b AUTHENTICATE X\r\n",
    b"* 1 FETCH (X ",
    b"* LIST ",
    b"b LOGOUT\r\n",
    b"UID ",
    b"a APPEND x {5}\r\n",
    b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

const EDITED: &[&[u8]] = &[
    b"a ",
    b"\r\n",
    b"\n",
    b" ",
    b"a NOOP\r\n",
    b"a IDLE\r\n",
    b"DONE\r\n",
    b"+ \r\n",
    b"a OK\r\n",
    b"{5}\r\n",
    b"{3+}\r\n",
    b"a APPEND x ",
    b"x COMPRESS D\r\n",
    b"x COMPRESS ",
    b"UNAUTHENTICATE",
    b"x UNAUTHENTICATE\r\n",
    b"* CAPABILITY A STARTTLS\r\n",
    b"* CAPABILITY",
    b"* OK ",
    b"a OK [CAPABILITY ",
    b"HIDDEN",
    b"STARTTLS ",
    b"]",
    b"* LIST ",
    b"* 1 FETCH ",
    b"* BYE ",
];

fn babbled(steps: &[(bool, Vec<u8>)], sizes: Option<&[usize]>) -> Rig {
    let mut rig = Rig::new();
    let mut sizes = sizes.unwrap_or(&[usize::MAX]).iter().copied().cycle();
    for (client, bytes) in steps {
        let direction = if *client { ClientToBackend } else { BackendToClient };
        rig.cut(direction, bytes, &mut sizes);
    }
    rig.finish();
    rig
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(prop_oneof![4 => 1..6_usize, 1 => 6..200_usize], 1..9)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn well_behaved_sessions_are_followed_byte_for_byte(
        acts in prop::collection::vec(act(), 1..8),
        sizes in cuts(),
    ) {
        let mut script = Script::default();
        for act in &acts {
            script.play(act);
        }
        let mut rig = Rig::new();
        let mut sizes = sizes.into_iter().cycle();
        let (mut to_backend, mut to_client) = (Vec::new(), Vec::new());
        for step in &script.steps {
            let mut rest = &step.bytes[..];
            while !rest.is_empty() {
                let (piece, tail) = rest.split_at(sizes.next().unwrap().min(rest.len()));
                rig.chunk(step.direction, piece);
                rest = tail;
                prop_assert!(rig.follow.is_following());
                if !rest.is_empty() {
                    prop_assert!(!rig.follow.may_interrupt(), "inside {:?}", step.bytes);
                }
            }
            match step.direction {
                ClientToBackend => to_backend.extend_from_slice(&step.bytes),
                BackendToClient => to_client.extend_from_slice(&step.bytes),
            }
            prop_assert_eq!(rig.follow.may_interrupt(), step.may, "behind {:?}", step.bytes);
            prop_assert_eq!(rig.follow.phase() == Phase::Idle, step.idle);
            prop_assert_eq!(rig.completed.len(), step.completed);
        }
        prop_assert_eq!(rig.to_backend, to_backend);
        prop_assert_eq!(rig.to_client, to_client);
        prop_assert!(rig.follow.ended_orderly());
    }

    #[test]
    fn babble_passes_untouched(steps in babble(HARMLESS), sizes in cuts()) {
        for sizes in [None, Some(&sizes[..]), Some(&[1])] {
            let rig = babbled(&steps, sizes);
            prop_assert_eq!(rig.error, None);
            for (who, out) in [(true, &rig.to_backend), (false, &rig.to_client)] {
                let said: Vec<&[u8]> =
                    steps.iter().filter(|step| step.0 == who).map(|step| &step.1[..]).collect();
                prop_assert_eq!(&said.concat(), out);
            }
        }
    }

    #[test]
    fn what_is_edited_does_not_depend_on_the_cuts(steps in babble(EDITED), sizes in cuts()) {
        let whole = babbled(&steps, None);
        // Fewer cuts leave more unanswered at one time, so only the whole may fail alone.
        if whole.error.is_none() {
            for sizes in [&sizes[..], &[1]] {
                let cut = babbled(&steps, Some(sizes));
                prop_assert_eq!(cut.error, None);
                prop_assert_eq!(&cut.to_backend, &whole.to_backend);
                prop_assert_eq!(&cut.to_client, &whole.to_client);
                // A cut may fall on a boundary that the whole runs past.
                prop_assert!(cut.answers.starts_with(&whole.answers));
                if cut.answers == whole.answers {
                    prop_assert_eq!(cut.state(), whole.state());
                }
                prop_assert_eq!(cut.verbs(), whole.verbs());
            }
        }
    }
}
