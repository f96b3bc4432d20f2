//! Dates as IMAP and mail headers write them.
//!
//! In: `1-Feb-1994`, `"17-Jul-1996 02:44:25 -0700"` (RFC 3501 §9 `date`, `date-time`) and the `Date:`
//! field (RFC 5322 §3.3). Out: values that compare and print. A search by date looks at the date as
//! written and disregards time and zone (RFC 3501 §6.4.4), so nothing here converts between zones.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// A day of the calendar; ordered by time.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Date {
    year: u16,
    /// 1 to 12.
    month: u8,
    /// 1 to the month's last.
    day: u8,
}

/// A moment with the zone in which it was written; prints as INTERNALDATE, without the quotes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DateTime {
    pub date: Date,
    hour: u8,
    minute: u8,
    second: u8,
    /// East of UTC.
    zone_minutes: i16,
}

impl Date {
    fn new(year: u16, month: u8, day: u8) -> Option<Self> {
        let leap =
            year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
        let last = match month {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        (1..=last).contains(&day).then_some(Self { year, month, day })
    }

    /// `1-Feb-1994`: one or two digits of day, four of year.
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('-');
        let (day, name, year) = (fields.next()?, fields.next()?, fields.next()?);
        if fields.next().is_some() || year.len() != 4 || !(1..=2).contains(&day.len()) {
            return None;
        }
        Self::new(digits(year)?, month(name)?, u8::try_from(digits(day)?).ok()?)
    }

    /// The date in a `Date:` field: `Mon, 2 Mar 2026 09:00:00 +0100`, with or without the weekday.
    pub fn parse_header(text: &str) -> Option<Self> {
        let text = text.split_once(',').map_or(text, |(_weekday, rest)| rest);
        let mut fields = text.split_ascii_whitespace();
        let day = u8::try_from(digits(fields.next()?)?).ok()?;
        let month = month(fields.next()?)?;
        let written = fields.next()?;
        let year = match (digits(written)?, written.len()) {
            (year, 2) if year < 50 => 2000 + year, // RFC 5322 §4.3
            (year, 2 | 3) => 1900 + year,
            (year, _) => year,
        };
        Self::new(year, month, day)
    }
}

impl DateTime {
    /// `17-Jul-1996 02:44:25 -0700`; the day may be padded with a space.
    pub fn parse(text: &str) -> Option<Self> {
        let mut fields = text.trim_start_matches(' ').split(' ');
        let (date, time, zone) = (fields.next()?, fields.next()?, fields.next()?);
        let time: Vec<&str> = time.split(':').collect();
        let [hour, minute, second] = time[..] else { return None };
        if fields.next().is_some() || [hour, minute, second].iter().any(|field| field.len() != 2) {
            return None;
        }
        let (sign, zone) = match zone.split_at_checked(1)? {
            ("+", digits) => (1, digits),
            ("-", digits) => (-1, digits),
            _ => return None,
        };
        let (hours, minutes) = zone.split_at_checked(2).filter(|_| zone.len() == 4)?;
        let (hours, minutes) = (digits(hours)?, digits(minutes)?);
        let parsed = Self {
            date: Date::parse(date)?,
            hour: u8::try_from(digits(hour)?).ok()?,
            minute: u8::try_from(digits(minute)?).ok()?,
            second: u8::try_from(digits(second)?).ok()?,
            zone_minutes: sign * i16::try_from(hours * 60 + minutes).ok()?,
        };
        let possible =
            parsed.hour < 24 && parsed.minute < 60 && parsed.second <= 60 && minutes < 60;
        possible.then_some(parsed)
    }

    /// This moment, in UTC.
    pub fn now() -> Self {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self::from_unix(unix)
    }

    fn from_unix(unix: u64) -> Self {
        // Howard Hinnant's civil_from_days: eras of 400 years, years that begin in March.
        let days = unix / 86_400 + 719_468;
        let (era, day_of_era) = (days / 146_097, days % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted = (5 * day_of_year + 2) / 153;
        let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let day = day_of_year - (153 * shifted + 2) / 5 + 1;
        let small = |value: u64| u8::try_from(value).unwrap_or(0);
        Self {
            date: Date {
                year: u16::try_from(year).unwrap_or(9999),
                month: small(month),
                day: small(day),
            },
            hour: small(unix % 86_400 / 3_600),
            minute: small(unix % 3_600 / 60),
            second: small(unix % 60),
            zone_minutes: 0,
        }
    }
}

impl fmt::Display for DateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Date { year, month, day } = self.date;
        let month = MONTHS[usize::from(month.clamp(1, 12)) - 1];
        let (sign, zone) = (if self.zone_minutes < 0 { '-' } else { '+' }, self.zone_minutes.abs());
        write!(f, "{day:2}-{month}-{year:04} ")?;
        write!(f, "{:02}:{:02}:{:02} ", self.hour, self.minute, self.second)?;
        write!(f, "{sign}{:02}{:02}", zone / 60, zone % 60)
    }
}

/// Only digits: `u16::from_str` would also take a `+`.
fn digits(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

fn month(name: &str) -> Option<u8> {
    let at = MONTHS.iter().position(|month| month.eq_ignore_ascii_case(name))?;
    u8::try_from(at + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn internal_dates_print_as_they_were_read() {
        for text in [
            "17-Jul-1996 02:44:25 -0700",
            " 1-Feb-2026 00:00:00 +0530",
            "29-Feb-2024 23:59:60 +0000",
        ] {
            assert_eq!(DateTime::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(DateTime::from_unix(0).to_string(), " 1-Jan-1970 00:00:00 +0000");
        assert_eq!(DateTime::from_unix(951_827_696).to_string(), "29-Feb-2000 12:34:56 +0000");
        assert_eq!(DateTime::from_unix(1_795_492_424).to_string(), "24-Nov-2026 03:53:44 +0000");
    }

    #[test]
    fn impossible_dates_are_refused() {
        for text in [
            "",
            "-",
            "31-Feb-2026",
            "0-Jan-2026",
            "1-Foo-2026",
            "1-Jan-26",
            "+1-Jan-2026",
            "1-Jan-2026-2",
        ] {
            assert_eq!(Date::parse(text), None, "{text}");
        }
        for text in [
            "",
            "1-Jan-2026",
            "1-Jan-2026 1:2:3 +0000",
            "1-Jan-2026 24:00:00 +0000",
            "1-Jan-2026 00:00:00 0000",
            "1-Jan-2026 00:00:00 +é0",
        ] {
            assert_eq!(DateTime::parse(text), None, "{text}");
        }
    }

    #[test]
    fn header_dates_are_found() {
        let expected = Date::parse("2-Mar-2026");
        for text in ["Mon, 2 Mar 2026 09:00:00 +0100", "02 mar 2026 09:00 GMT", "Mon,2 Mar 26 9:00"]
        {
            assert_eq!(Date::parse_header(text), expected, "{text}");
        }
        assert_eq!(Date::parse_header("yesterday"), None);
    }
}
