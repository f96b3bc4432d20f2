//! Whatever a balancer says first: no panic, byte by byte the same as whole, and nothing behind the header is looked at.
#![no_main]

use imaps_proxy::proto::proxy_header::{Header, Tlvs, read, v1, v2};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let whole = read(data);
    let bytewise = (0..=data.len()).find_map(|end| read(&data[..end]).transpose());
    assert_eq!(bytewise.transpose(), whole);
    let Ok(Some((header, length))) = whole else { return };
    assert_eq!(read(&data[..length]), whole);
    let Header::Client(ends) = header else { return };
    for written in [v1(Some(&ends)), v2(&ends, &Tlvs { checksum: true, ..Tlvs::default() })] {
        let Ok(Some((Header::Client(again), _))) = read(&written) else { panic!("not written so") };
        assert_eq!(again.source, ends.source);
    }
});
