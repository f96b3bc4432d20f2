//! Values that are so many of something: durations, sizes, numbers.
//!
//! Each carries its bounds in its type and describes itself to the JSON Schema, as every kind does.

use std::time::Duration;

use schemars::json_schema;
use serde_yaml::Value;

use crate::config::read::{Read, patterned, scalar, schema};
use crate::config::text::mistake::{Mistakes, shown};
use crate::config::text::yaml::Node;

/// A time span between `MIN` and `MAX` milliseconds: `500ms`, `30s`, `5m`, `24h`, `1h30m`.
#[derive(Clone, Copy, Debug)]
pub struct Span<const MIN: u64, const MAX: u64>(pub Duration);

const DURATION: &str = "a duration such as 30s, 5m or 24h";
const DURATION_PATTERN: &str = "([0-9]+(ms|s|m|h|d))+";

impl<const MIN: u64, const MAX: u64> Read for Span<MIN, MAX> {
    const EXPECTED: &'static str = DURATION;

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        scalar(node, mistakes, |text| {
            let value = duration(text)?;
            let (min, max) = (Duration::from_millis(MIN), Duration::from_millis(MAX));
            if (min..=max).contains(&value) {
                return Ok(Self(value));
            }
            let bounds = format!("between {} and {}", duration_text(min), duration_text(max));
            Err(format!("`{}` must be {bounds}, found {}", node.name, shown(text)))
        })
    }

    fn show(&self) -> Value {
        duration_text(self.0).into()
    }
}

schema!([const MIN: u64, const MAX: u64] Span<MIN, MAX>, _generator => patterned(DURATION_PATTERN));

/// `timeouts.idle`: at least the 30 minutes that a client is granted, at most a day.
#[derive(Clone, Copy, Debug)]
pub struct Idle(pub Duration);

impl Read for Idle {
    const EXPECTED: &'static str = DURATION;

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        scalar(node, mistakes, |text| {
            let value = duration(text)?;
            if value < Duration::from_mins(30) {
                let why = "RFC 9051 §5.4 grants a client 30 minutes of silence";
                return Err(format!("`idle` must be at least 30m, found {}: {why}", shown(text)));
            }
            if value > Duration::from_hours(24) {
                return Err(format!("`idle` must be between 30m and 24h, found {}", shown(text)));
            }
            Ok(Self(value))
        })
    }

    fn show(&self) -> Value {
        duration_text(self.0).into()
    }
}

schema!([] Idle, _generator => patterned(DURATION_PATTERN));

impl<const MIN: u64, const MAX: u64> From<Span<MIN, MAX>> for Duration {
    fn from(span: Span<MIN, MAX>) -> Self {
        span.0
    }
}

impl<const MIN: u64, const MAX: u64> From<Duration> for Span<MIN, MAX> {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

impl From<Idle> for Duration {
    fn from(idle: Idle) -> Self {
        idle.0
    }
}

impl From<Duration> for Idle {
    fn from(duration: Duration) -> Self {
        Self(duration)
    }
}

/// Numbers with units, largest first or not, without spaces.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected {DURATION}, found `{}`", shown(text));
    if text.is_empty() {
        return Err(format!("expected {DURATION}, found an empty text"));
    }
    if text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!("{}; it needs a unit, such as {}s", wrong(), shown(text)));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
        rest = &rest[digits..];
        let unit = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let millis = match &rest[..unit] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        rest = &rest[unit..];
        let part = number.checked_mul(millis).ok_or_else(wrong)?;
        total = total.checked_add(Duration::from_millis(part)).ok_or_else(wrong)?;
    }
    Ok(total)
}

/// A duration as it would stand in the file.
pub fn duration_text(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, size) in [("h", 3_600_000), ("m", 60_000), ("s", 1000)] {
        if millis > 0 && millis.is_multiple_of(size) {
            return format!("{}{unit}", millis / size);
        }
    }
    format!("{millis}ms")
}

/// A number of bytes between `MIN` and `MAX`: `4096`, `64KiB`, `1MiB`.
#[derive(Clone, Copy, Debug)]
pub struct Size<const MIN: usize, const MAX: usize>(pub usize);

const SIZE: &str = "a size such as 64KiB or 4096";

impl<const MIN: usize, const MAX: usize> Read for Size<MIN, MAX> {
    const EXPECTED: &'static str = SIZE;

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        scalar(node, mistakes, |text| {
            let value = size(text)?;
            if (MIN..=MAX).contains(&value) {
                return Ok(Self(value));
            }
            let bounds = format!("between {} and {}", size_text(MIN), size_text(MAX));
            Err(format!("`{}` must be {bounds}, found {}", node.name, shown(text)))
        })
    }

    fn show(&self) -> Value {
        size_text(self.0).into()
    }
}

schema!([const MIN: usize, const MAX: usize] Size<MIN, MAX>, _generator => {
    json_schema!({ "anyOf": [
        { "type": "integer", "minimum": MIN, "maximum": MAX },
        patterned("[0-9]+(B|KiB|MiB|GiB)?"),
    ]})
});

fn size(text: &str) -> Result<usize, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let wrong = || format!("expected {SIZE}, found `{}`", shown(text));
    let factor: usize = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "K" | "k" | "KB" | "kB" | "kb" => {
            return Err(format!("{}; write {}KiB for 1024s", wrong(), shown(number)));
        }
        "M" | "m" | "MB" | "mB" | "mb" => {
            return Err(format!("{}; write {}MiB for 1048576s", wrong(), shown(number)));
        }
        _ => return Err(wrong()),
    };
    let number: usize = number.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).ok_or_else(wrong)
}

fn size_text(size: usize) -> String {
    for (unit, bytes) in [("MiB", 1 << 20), ("KiB", 1 << 10)] {
        if size >= bytes && size.is_multiple_of(bytes) {
            return format!("{}{unit}", size / bytes);
        }
    }
    format!("{size}B")
}

/// A number between `MIN` and `MAX`.
#[derive(Clone, Copy, Debug)]
pub struct Count<const MIN: usize, const MAX: usize>(pub usize);

impl<const MIN: usize, const MAX: usize> Read for Count<MIN, MAX> {
    const EXPECTED: &'static str = "a number";

    fn read(node: &Node, mistakes: &mut Mistakes) -> Option<Self> {
        scalar(node, mistakes, |text| match text.parse() {
            Ok(value) if (MIN..=MAX).contains(&value) => Ok(Self(value)),
            Ok(_) => {
                let name = &node.name;
                Err(format!("`{name}` must be between {MIN} and {MAX}, found {}", shown(text)))
            }
            Err(_) => {
                Err(format!("expected a number between {MIN} and {MAX}, found `{}`", shown(text)))
            }
        })
    }

    fn show(&self) -> Value {
        self.0.into()
    }
}

schema!([const MIN: usize, const MAX: usize] Count<MIN, MAX>, _generator => {
    json_schema!({ "anyOf": [
        { "type": "integer", "minimum": MIN, "maximum": MAX },
        patterned("[0-9]+"),
    ]})
});

impl<const MIN: usize, const MAX: usize> From<Size<MIN, MAX>> for usize {
    fn from(size: Size<MIN, MAX>) -> Self {
        size.0
    }
}

impl<const MIN: usize, const MAX: usize> From<usize> for Size<MIN, MAX> {
    fn from(bytes: usize) -> Self {
        Self(bytes)
    }
}

impl<const MIN: usize, const MAX: usize> From<Count<MIN, MAX>> for usize {
    fn from(count: Count<MIN, MAX>) -> Self {
        count.0
    }
}

impl<const MIN: usize, const MAX: usize> From<usize> for Count<MIN, MAX> {
    fn from(count: usize) -> Self {
        Self(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_numbers_with_units() {
        for (text, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("1d", 86_400_000),
            ("1h30m", 5_400_000),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "30", "s", "30x", "30 s", "-1s", "1.5s", "30S", "s30", "30s5", "١s"] {
            assert!(duration(text).is_err(), "{text}");
        }
        assert!(duration("99999999999999999999s").is_err());
        assert!(duration("18446744073709551615d").is_err());
        for text in ["100ms", "10s", "35m", "24h", "1500ms"] {
            assert_eq!(duration_text(duration(text).unwrap()), text);
        }
    }

    #[test]
    fn sizes_are_bytes_with_binary_units() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("64KiB", 65536), ("1MiB", 1 << 20), ("7B", 7)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "64kib", "64 KiB", "-1", "1.5KiB", "99999999999999999999GiB"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert!(size("64KB").unwrap_err().contains("write 64KiB"));
    }
}
