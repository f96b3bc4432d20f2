//! Whatever both sides say after login: no panic, and no byte is made up.
#![no_main]

use std::time::Instant;

use imaps_proxy::proto::imap::capability::Repair;
use imaps_proxy::proto::imap::follow::{Direction, Follow};

libfuzzer_sys::fuzz_target!(|reads: Vec<(bool, &[u8])>| {
    let (mut follow, repair, now) = (Follow::new(), Repair::new(&[], &[]), Instant::now());
    for (client, bytes) in reads {
        let mut buffer = Vec::new();
        let direction =
            if client { Direction::ClientToBackend } else { Direction::BackendToClient };
        follow.unhold(direction, &mut buffer);
        let held = buffer.len();
        buffer.extend_from_slice(bytes);
        let followed = match direction {
            Direction::ClientToBackend => follow.client(&mut buffer, now),
            Direction::BackendToClient => follow.backend(&mut buffer, &repair, now, &mut |_, _| {}),
        };
        assert!(buffer.len() <= held + bytes.len() + 1, "nothing is made up");
        if followed.is_err() {
            return;
        }
        follow.take_answers(&mut Vec::new());
    }
});
