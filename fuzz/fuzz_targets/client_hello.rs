//! Whatever a stranger says first: no panic, and byte by byte the same view as whole.
#![no_main]

use imaps_proxy::proto::client_hello::{Key, Look, Reader};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let whole = view(&mut Reader::default(), data);
    let mut reader = Reader::default();
    let bytewise = (1..=data.len()).map(|end| view(&mut reader, &data[..end])).find(Option::is_some);
    assert_eq!(bytewise.flatten(), whole);
});

/// `None`: more bytes are needed.
fn view(reader: &mut Reader, input: &[u8]) -> Option<String> {
    match reader.look(input) {
        Look::More => None,
        Look::Hello(hello) => {
            let keys = [Key::Ecdsa, Key::Rsa].map(|key| hello.takes(key, |_| true));
            let alpn: Vec<_> = hello.alpn().collect();
            Some(format!("{hello:?} {keys:?} {alpn:?}"))
        }
        other => Some(format!("{other:?}")),
    }
}
