use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

fn ends(source: &str, destination: &str) -> Ends {
    Ends::new(source.parse().expect("an address"), destination.parse().expect("an address"))
}

fn client(source: &str, destination: &str) -> Header {
    Header::Client(ends(source, destination))
}

/// A header of version 2 with this block behind the length.
fn binary(command: u8, family: u8, block: &[u8]) -> Vec<u8> {
    let length = u16::try_from(block.len()).expect("short");
    [&V2[..], &[0x20 | command, family], &length.to_be_bytes(), block].concat()
}

const BLOCK_4: &[u8] = &[192, 0, 2, 7, 198, 51, 100, 1, 0xc3, 0x50, 0x03, 0xe1];

/// Whole, byte by byte, with more behind it: always the same.
#[track_caller]
fn reads(input: &[u8]) -> Result<Option<(Header, usize)>, Error> {
    let whole = read(input);
    let decided = (0..=input.len()).find_map(|end| read(&input[..end]).transpose()).transpose();
    assert_eq!(decided, whole, "{:?}", input.escape_ascii().to_string());
    if let Ok(Some((_, length))) = whole {
        assert!((0..length).all(|end| read(&input[..end]) == Ok(None)), "decided too early");
        let more = [input, b"\x16\x03\x01\x02\0"].concat();
        assert_eq!(read(&more), whole);
    }
    whole
}

#[test]
fn lines_of_version_1_are_read() {
    let longest = format!("PROXY UNKNOWN {}\r\n", "f".repeat(91));
    for (line, want) in [
        (
            "PROXY TCP4 192.0.2.7 198.51.100.1 50000 993\r\n",
            client("192.0.2.7:50000", "198.51.100.1:993"),
        ),
        (
            "PROXY TCP6 2001:db8::7 2001:DB8:0:0::1 65535 0\r\n",
            client("[2001:db8::7]:65535", "[2001:db8::1]:0"),
        ),
        (
            "PROXY TCP6 ::ffff:192.0.2.7 ::ffff:c633:6401 1 2\r\n",
            client("192.0.2.7:1", "198.51.100.1:2"),
        ),
        (
            "PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 1 2\r\n",
            client("192.0.2.7:1", "[2001:db8::1]:2"),
        ),
        (
            "PROXY TCP6 2001:db8::9 192.0.2.1 50000 993\r\n",
            client("[2001:db8::9]:50000", "192.0.2.1:993"),
        ),
        (
            "PROXY TCP6 203.0.113.9 2001:db8::1 50000 993\r\n",
            client("203.0.113.9:50000", "[2001:db8::1]:993"),
        ),
        ("PROXY TCP6 203.0.113.9 192.0.2.1 1 2\r\n", client("203.0.113.9:1", "192.0.2.1:2")),
        ("PROXY TCP4 2001:db8::7 192.0.2.1 1 2\r\n", client("[2001:db8::7]:1", "192.0.2.1:2")),
        ("PROXY TCP4 192.0.2.7 unix:/run/in 1 0\r\n", client("192.0.2.7:1", "0.0.0.0:0")),
        ("PROXY TCP6 fe80::1%eth0 fe80::2%eth0 1 2\r\n", client("[fe80::1]:1", "[fe80::2]:2")),
        ("PROXY UNKNOWN\r\n", Header::Own),
        ("PROXY UNKNOWN ::1 nonsense\r\n", Header::Own),
        (&longest, Header::Own),
    ] {
        assert_eq!(reads(line.as_bytes()), Ok(Some((want, line.len()))), "{line}");
    }
}

#[test]
fn lines_of_version_1_are_refused() {
    let endless = format!("PROXY UNKNOWN {}\r\n", "f".repeat(92));
    assert_eq!(reads(endless.as_bytes()), Err(Error::Endless));
    for (line, want) in [
        ("PROXY \r\n", Flaw::Protocol),
        ("PROXY  TCP4 192.0.2.7 198.51.100.1 1 2\r\n", Flaw::Protocol),
        ("PROXY tcp4 192.0.2.7 198.51.100.1 1 2\r\n", Flaw::Protocol),
        ("PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n", Flaw::Protocol),
        ("PROXY UNKNOWNS\r\n", Flaw::Protocol),
        ("PROXY TCP4\r\n", Flaw::Source),
        ("PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n", Flaw::Source),
        ("PROXY TCP4 192.0.2.07 198.51.100.1 1 2\r\n", Flaw::Source),
        ("PROXY TCP4 192.0.2.256 198.51.100.1 1 2\r\n", Flaw::Source),
        ("PROXY TCP4 192.0.2.7\0 198.51.100.1 1 2\r\n", Flaw::Source),
        ("PROXY TCP4 unix:/run/in 198.51.100.1 1 2\r\n", Flaw::Source),
        ("PROXY TCP4 mail.example.org 198.51.100.1 1 2\r\n", Flaw::Source),
        ("PROXY TCP6 [2001:db8::7] 2001:db8::1 1 2\r\n", Flaw::Source),
        ("PROXY TCP6 fe80::1% 2001:db8::1 1 2\r\n", Flaw::Source),
        ("PROXY TCP4 192.0.2.7%eth0 198.51.100.1 1 2\r\n", Flaw::Source),
        ("PROXY TCP4 192.0.2.7\r\n", Flaw::Destination),
        ("PROXY TCP4 192.0.2.7 198.51.100 1 2\r\n", Flaw::Destination),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n", Flaw::SourcePort),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n", Flaw::SourcePort),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n", Flaw::DestinationPort),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1 65536\r\n", Flaw::DestinationPort),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n\r\n", Flaw::DestinationPort),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1 2 \r\n", Flaw::More),
        ("PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n", Flaw::More),
    ] {
        assert_eq!(reads(line.as_bytes()), Err(Error::Line(want)), "{line}");
    }
    assert_eq!(reads(b"PROXY TCP4 \xff\r\n"), Err(Error::Line(Flaw::Bytes)));
    for other in
        [&b"PROXX"[..], b"PROXY\t", b"proxy ", b"\x16\x03\x01", b"\r\n\r\n\r", b"a NOOP\r\n"]
    {
        assert_eq!(reads(other), Err(Error::Missing));
        assert_eq!(announces(other), Some(false));
    }
}

#[test]
fn headers_of_version_2_are_read() {
    let block_6 = [
        &"2001:db8::7".parse::<Ipv6Addr>().expect("an address").octets()[..],
        &"2001:db8::1".parse::<Ipv6Addr>().expect("an address").octets(),
        &[0xc3, 0x50, 0x03, 0xe1],
    ]
    .concat();
    let with_noop = [BLOCK_4, &[4, 0, 2, 9, 9]].concat();
    for (input, want) in [
        (binary(1, 0x11, BLOCK_4), client("192.0.2.7:50000", "198.51.100.1:993")),
        (binary(1, 0x11, &with_noop), client("192.0.2.7:50000", "198.51.100.1:993")),
        (binary(1, 0x21, &block_6), client("[2001:db8::7]:50000", "[2001:db8::1]:993")),
        (binary(0, 0x00, b""), Header::Own),
        (binary(0, 0xff, b"whatever"), Header::Own),
        (binary(0, 0x11, BLOCK_4), Header::Own),
        (binary(1, 0x00, b""), Header::Own),
        (binary(1, 0x00, &[4, 0, 0]), Header::Own),
        (binary(1, 0x12, BLOCK_4), Header::Own),
        (binary(1, 0x10, BLOCK_4), Header::Own),
        (binary(1, 0x31, &[0; 216]), Header::Own),
        (binary(0, 0x00, &[0; MAX_HEADER - V2_FIXED]), Header::Own),
    ] {
        assert_eq!(reads(&input), Ok(Some((want, input.len()))), "{input:?}");
    }
}

#[test]
fn headers_of_version_2_are_refused() {
    let tlvs = |tlvs: &[u8]| binary(1, 0x11, &[BLOCK_4, tlvs].concat());
    for (input, want) in [
        ([&V2[..], &[0x11]].concat(), Error::Version(1)),
        ([&V2[..], &[0x31]].concat(), Error::Version(3)),
        ([&V2[..], &[0x22]].concat(), Error::Command(2)),
        (binary(1, 0x41, b""), Error::Family(0x41)),
        (binary(1, 0x13, BLOCK_4), Error::Family(0x13)),
        ([&V2[..], &[0x21, 0x11, 255, 255]].concat(), Error::TooLong(65551)),
        ([&V2[..], &[0x20, 0, 0x0f, 0xf1]].concat(), Error::TooLong(4097)),
        (binary(1, 0x11, &BLOCK_4[1..]), Error::Addresses),
        (binary(1, 0x21, BLOCK_4), Error::Addresses),
        (binary(1, 0x31, &[0; 215]), Error::Addresses),
        (tlvs(&[4]), Error::Tlv),
        (tlvs(&[4, 0]), Error::Tlv),
        (tlvs(&[4, 0, 2, 9]), Error::Tlv),
        (tlvs(&[4, 0, 0, 9]), Error::Tlv),
        (tlvs(&[3, 0, 3, 1, 2, 3]), Error::Tlv),
        (tlvs(&[3, 0, 4, 1, 2, 3, 4]), Error::Checksum),
    ] {
        assert_eq!(reads(&input), Err(want), "{input:?}");
    }
}

#[test]
fn checksums_are_those_of_the_standard() {
    // RFC 3720 B.4
    assert_eq!(crc32c(&[&[0; 32]]), 0x8a91_36aa);
    assert_eq!(crc32c(&[b"1234", b"56789"]), 0xe306_9283);
}

#[test]
fn version_1_is_written_in_one_family() {
    for (source, destination, want) in [
        ("192.0.2.7:1", "198.51.100.1:993", "PROXY TCP4 192.0.2.7 198.51.100.1 1 993\r\n"),
        ("[2001:db8::7]:1", "[::1]:993", "PROXY TCP6 2001:db8::7 ::1 1 993\r\n"),
        ("[::ffff:192.0.2.7]:1", "[::ffff:10.0.0.1]:9", "PROXY TCP4 192.0.2.7 10.0.0.1 1 9\r\n"),
        ("192.0.2.7:1", "[2001:db8::1]:993", "PROXY TCP4 192.0.2.7 0.0.0.0 1 993\r\n"),
        (
            "[2001:db8::7]:1",
            "198.51.100.1:993",
            "PROXY TCP6 2001:db8::7 ::ffff:198.51.100.1 1 993\r\n",
        ),
    ] {
        let line = v1(Some(&ends(source, destination)));
        assert_eq!(str::from_utf8(&line), Ok(want));
    }
    assert_eq!(v1(None), b"PROXY UNKNOWN\r\n");
}

const TLS: Tls<'_> = Tls {
    version: Some("TLSv1.3"),
    cipher: Some("TLS_AES_128_GCM_SHA256"),
    certificate: Certificate::None,
};

#[test]
fn version_2_is_written_byte_by_byte() {
    assert_eq!(local(), b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0");
    let ends = ends("192.0.2.7:50000", "198.51.100.1:993");
    assert_eq!(v2(&ends, &Tlvs::default()), binary(1, 0x11, BLOCK_4));
    let tlvs = Tlvs {
        alpn: Some(b"imap"),
        authority: Some("mail.example.org"),
        unique_id: Some(b"0123"),
        tls: Some(TLS),
        checksum: false,
    };
    let ssl = b"\x20\0\x28\x01\0\0\0\x01\x21\0\x07TLSv1.3\x23\0\x16TLS_AES_128_GCM_SHA256";
    let rest = b"\x02\0\x10mail.example.org\x01\0\x04imap\x05\0\x040123";
    assert_eq!(v2(&ends, &tlvs), binary(1, 0x11, &[BLOCK_4, ssl, rest].concat()));
}

#[test]
fn verified_is_said_of_nothing_but_a_certificate_that_was() {
    let ends = ends("192.0.2.7:50000", "198.51.100.1:993");
    for (certificate, want) in [
        (Certificate::None, [1, 0, 0, 0, 1]),
        (Certificate::Verified { resumed: false }, [7, 0, 0, 0, 0]),
        (Certificate::Verified { resumed: true }, [5, 0, 0, 0, 0]),
    ] {
        let header = v2(&ends, &Tlvs { tls: Some(Tls { certificate, ..TLS }), ..Tlvs::default() });
        assert_eq!(header[31..36], want);
    }
}

#[test]
fn only_host_names_are_announced() {
    let ends = ends("192.0.2.7:50000", "198.51.100.1:993");
    let said = |name: &str| {
        let header = v2(&ends, &Tlvs { authority: Some(name), ..Tlvs::default() });
        header.get(31..).map(|name| String::from_utf8_lossy(name).into_owned())
    };
    let long = format!("{}.org", ["a".repeat(62).as_str(); 4].join("."));
    for name in ["mail.example.org", "localhost", "xn--bcher-kva.example", "a-b.7.de"] {
        assert_eq!(said(name).as_deref(), Some(name));
    }
    assert_eq!(said("mail.example.org.").as_deref(), Some("mail.example.org"));
    for name in ["", ".", "a..b", "mail_1.example", "-a.org", "a-.org", "192.0.2.7", "ü.de", &long]
    {
        assert_eq!(said(name), None, "{name}");
    }
}

fn address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![
        any::<u32>().prop_map(|bits| IpAddr::from(Ipv4Addr::from_bits(bits))),
        any::<u128>().prop_map(|bits| IpAddr::from(Ipv6Addr::from_bits(bits))),
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).to_ipv6_mapped().into()),
    ];
    (ip, any::<u16>()).prop_map(SocketAddr::from)
}

proptest! {
    #[test]
    fn what_is_written_can_be_read_and_is_short(
        source in address(),
        destination in address(),
        name in "[a-z]{1,63}(\\.[a-z]{1,63}){0,3}",
        resumed: Option<bool>,
        checksum: bool,
        full: bool,
    ) {
        let ends = Ends::new(source, destination);
        let certificate = resumed.map_or(Certificate::None, |resumed| Certificate::Verified { resumed });
        let tls = Tls { cipher: Some("ECDHE-ECDSA-CHACHA20-POLY1305"), certificate, ..TLS };
        let tlvs = if full {
            Tlvs {
                alpn: Some(b"imap"),
                authority: Some(&name),
                unique_id: Some(b"0123456789abcdef"),
                tls: Some(tls),
                checksum,
            }
        } else {
            Tlvs::default()
        };
        for header in [v1(Some(&ends)), v2(&ends, &tlvs)] {
            let limit = if full && header.starts_with(&V2) { 391 } else { 104 };
            prop_assert!(header.len() <= limit);
            let Ok(Some((Header::Client(read), length))) = reads(&header) else {
                return Err(TestCaseError::fail("it is a header"));
            };
            prop_assert_eq!(length, header.len());
            prop_assert_eq!(read.source, ends.source, "the person's address arrives as it is");
            prop_assert_eq!(read.destination.port(), ends.destination.port());
            if ends.source.is_ipv6() == ends.destination.is_ipv6() {
                prop_assert_eq!(read, ends);
            }
        }
    }

    #[test]
    fn a_changed_bit_of_an_address_is_noticed_by_the_checksum(bit: usize, address in address()) {
        let tlvs = Tlvs { tls: Some(TLS), checksum: true, ..Tlvs::default() };
        let mut header = v2(&Ends::new(address, address), &tlvs);
        let block = if address.ip().to_canonical().is_ipv4() { 12 } else { 36 };
        let bit = V2_FIXED * 8 + bit % (block * 8);
        header[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(read(&header), Err(Error::Checksum));
    }

    #[test]
    fn whatever_comes_is_read_alike_in_pieces(
        start in 0..3_usize,
        rest in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let start: &[u8] = [&b""[..], V1, &V2][start];
        let _ = reads(&[start, &rest].concat());
    }

    #[test]
    fn whatever_comes_behind_the_fixed_part_is_read_alike_in_pieces(
        command in 0..2_u8,
        family: u8,
        length in 0..300_u16,
        rest in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let fixed = [&V2[..], &[0x20 | command, family], &length.to_be_bytes()].concat();
        let _ = reads(&[&fixed[..], &rest].concat());
    }
}
