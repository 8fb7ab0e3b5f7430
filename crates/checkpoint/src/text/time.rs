//! Dates for chat templates, without a time zone database.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A time in UTC by the fields of the calendar.
struct Calendar {
    year: i64,
    month: usize,
    day: u64,
    day_of_year: u64,
    weekday: usize,
    hour: u64,
    minute: u64,
    second: u64,
}

impl Calendar {
    fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
        let (days, seconds) = (since / 86_400, since % 86_400);
        // The first of January 1970 was a Thursday.
        let weekday = ((days + 4) % 7) as usize;
        let (mut year, mut left) = (1970, days);
        let leap = |year: i64| year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        // Whole cycles of 400 years first, so that any time is quick.
        year += 400 * (left / 146_097) as i64;
        left %= 146_097;
        while left >= 365 + u64::from(leap(year)) {
            left -= 365 + u64::from(leap(year));
            year += 1;
        }
        let day_of_year = left + 1;
        let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        let mut month = 0;
        while left >= lengths[month] {
            left -= lengths[month];
            month += 1;
        }
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        Self { year, month, day: left + 1, day_of_year, weekday, hour, minute, second }
    }
}

/// `strftime` in UTC for the directives that templates use. Unknown ones stay
/// as they are.
pub(super) fn strftime(time: SystemTime, format: &str) -> String {
    let at = Calendar::of(time);
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = rest.next();
        let padded = directive != Some('-');
        if !padded {
            directive = rest.next();
        }
        let number = |value: u64, width: usize| {
            if padded { format!("{value:0width$}") } else { value.to_string() }
        };
        let twelve = (at.hour + 11) % 12 + 1;
        out.push_str(&match directive {
            Some('Y') => at.year.to_string(),
            Some('y') => number(at.year.rem_euclid(100) as u64, 2),
            Some('m') => number(at.month as u64 + 1, 2),
            Some('d') => number(at.day, 2),
            Some('j') => number(at.day_of_year, 3),
            Some('H') => number(at.hour, 2),
            Some('I') => number(twelve, 2),
            Some('M') => number(at.minute, 2),
            Some('S') => number(at.second, 2),
            Some('p') => if at.hour < 12 { "AM" } else { "PM" }.into(),
            Some('B') => MONTHS[at.month].into(),
            Some('b') => MONTHS[at.month][..3].into(),
            Some('A') => DAYS[at.weekday].into(),
            Some('a') => DAYS[at.weekday][..3].into(),
            Some('F') => format!("{}-{:02}-{:02}", at.year, at.month + 1, at.day),
            Some('T') => format!("{:02}:{:02}:{:02}", at.hour, at.minute, at.second),
            Some('Z') => "UTC".into(),
            Some('z') => "+0000".into(),
            Some('%') => "%".into(),
            Some(other) => format!("%{}{other}", if padded { "" } else { "-" }),
            None => "%".into(),
        });
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let all = "%a %A %d %-d %b %B %m %Y %y %j %H:%M:%S %I %p %F %T %% %Q";
        assert_eq!(
            strftime(at(0), all),
            "Thu Thursday 01 1 Jan January 01 1970 70 001 00:00:00 12 AM 1970-01-01 00:00:00 % %Q"
        );
        assert_eq!(
            strftime(at(1_709_251_199), all),
            "Thu Thursday 29 29 Feb February 02 2024 24 060 23:59:59 11 PM 2024-02-29 23:59:59 % %Q"
        );
        assert_eq!(strftime(at(951_782_400), "%F %a"), "2000-02-29 Tue");
        assert_eq!(strftime(at(4_107_542_400), "%F %a"), "2100-03-01 Mon");
        assert_eq!(strftime(at(13_574_649_600), "%F"), "2400-03-01");
        assert_eq!(strftime(at(u32::MAX.into()), "%d %b %Y%"), "07 Feb 2106%");
    }
}
