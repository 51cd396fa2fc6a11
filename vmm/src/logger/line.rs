//! One event as one line.

use std::fmt::{self, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::Event;
use tracing::field::{Field, Visit};

/// The longest line, so that a single `write` to a FIFO is never mixed with another's
/// (`PIPE_BUF`).
pub(super) const LINE_BYTES_MAX: usize = 4096;

#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    pub(super) level: bool,
    pub(super) origin: bool,
}

/// The line of an event, with its line feed. Control characters are escaped: what a guest or a
/// client has written cannot begin a line of its own.
pub(super) fn format(now: SystemTime, event: &Event<'_>, style: Style) -> String {
    let metadata = event.metadata();
    let mut line = Line { text: time(now) };
    line.push(" ");
    if style.level {
        line.push(metadata.level().as_str());
        line.push(" ");
    }
    line.push(metadata.target());
    if let (true, Some(file), Some(number)) = (style.origin, metadata.file(), metadata.line()) {
        line.push(&format!(" {file}:{number}"));
    }
    line.push(":");
    event.record(&mut line);
    line.finish()
}

struct Line {
    text: String,
}

impl Line {
    fn push(&mut self, text: &str) {
        for c in text.chars() {
            if self.text.len() + c.len_utf8() > LINE_BYTES_MAX {
                return;
            }
            if c.is_control() {
                self.text.extend(c.escape_default());
            } else {
                self.text.push(c);
            }
        }
    }

    fn finish(mut self) -> String {
        while self.text.len() >= LINE_BYTES_MAX {
            self.text.pop();
        }
        self.text.push('\n');
        self.text
    }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text);
        Ok(())
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // A `Line` takes everything, so this cannot fail unless the value's own Debug does.
        let _ = match field.name() {
            "message" => write!(self, " {value:?}"),
            name => write!(self, " {name}={value:?}"),
        };
    }
}

/// The time in UTC to the microsecond, as in RFC 3339.
fn time(now: SystemTime) -> String {
    const DAY_SECONDS: u64 = 86_400;
    // A clock before 1970 is shown as 1970.
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs();
    let (year, month, day) = date(seconds / DAY_SECONDS);
    let (hour, minute, second) = (seconds % DAY_SECONDS / 3600, seconds % 3600 / 60, seconds % 60);
    let micros = since.subsec_micros();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// The Gregorian date of a day counted from 1970-01-01.
fn date(days: u64) -> (u64, u64, u64) {
    // Counted from 0000-03-01, every leap day is the last day of its year, of its 4 years and
    // of its 400 years.
    const DAYS_TO_1970: u64 = 719_468;
    const ERA_DAYS: u64 = 146_097;
    let day = days.saturating_add(DAYS_TO_1970);
    let (era, day) = (day / ERA_DAYS, day % ERA_DAYS);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // Months from March have 31, 30, 31, 30, 31 days, over and over: 153 in five.
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next_year) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next_year, month, day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (951_782_399, "2000-02-28T23:59:59.000000Z"),
            (951_782_400, "2000-02-29T00:00:00.000000Z"),
            (1_709_210_096, "2024-02-29T12:34:56.000000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000000Z"),
            (1_798_761_599, "2026-12-31T23:59:59.000000Z"),
        ] {
            assert_eq!(time(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        let micros = UNIX_EPOCH + Duration::from_micros(1_000_001);
        assert_eq!(time(micros), "1970-01-01T00:00:01.000001Z");
    }
}
