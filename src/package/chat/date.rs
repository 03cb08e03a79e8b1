//! `strftime`, for templates that tell the model what day it is.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
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

/// The time in UTC by a format of C, with English names.
///
/// # Errors
/// A directive that this function does not know.
pub fn strftime(time: SystemTime, format: &str) -> Result<String, Error> {
    let seconds = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let (year, month, day, day_of_year) = date(seconds / 86_400);
    let day_name = DAYS[(seconds / 86_400 % 7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let hour_of_12 = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let directive = rest.next();
        // GNU's `%-d` leaves the zero out.
        let (directive, width) = if directive == Some('-') { (rest.next(), 1) } else { (directive, 2) };
        let padded = |number: u64| format!("{number:0width$}");
        out += &match directive {
            Some('d') => padded(day),
            Some('m') => padded(month),
            Some('y') => padded(year % 100),
            Some('H') => padded(hour),
            Some('I') => padded(hour_of_12),
            Some('M') => padded(minute),
            Some('S') => padded(second),
            Some('j') => format!("{day_of_year:0width$}", width = if width == 1 { 1 } else { 3 }),
            Some('e') => format!("{day:width$}"),
            Some('Y') => year.to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                let shown = other.map_or_else(String::new, String::from);
                let message = format!("`strftime_now` does not know `%{shown}` (in `{format}`)");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        };
    }
    Ok(out)
}

/// Year, month, day and day of the year from days since 1970.
fn date(mut days: u64) -> (u64, u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let day_of_year = days + 1;
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 1;
    for length in lengths {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1, day_of_year)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn formats() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let all = "%A %a %d %-d %e %B %b %m %Y %y %H %I %-I %M %S %p %j %F %T %%";
        let text = strftime(at(951_827_696), all).unwrap();
        assert_eq!(text, "Tuesday Tue 29 29 29 February Feb 02 2000 00 12 12 12 34 56 PM 060 2000-02-29 12:34:56 %");
        assert_eq!(strftime(at(0), "%a %-d %e %I%p %j").unwrap(), "Thu 1  1 12AM 001");
        assert_eq!(strftime(at(1_767_225_599), "%d %b %Y %-j").unwrap(), "31 Dec 2025 365");
        assert!(strftime(at(0), "%Q").unwrap_err().to_string().contains("`%Q`"));
        assert!(strftime(at(0), "50%").is_err());
    }
}
