//! The moments that a VMM writes to its log.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// Before what has happened, in a message.
const MARK: &str = "timeline: ";
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What happened when, after `start`.
///
/// # Errors
/// A line with a moment does not begin with a time.
pub fn read(log: &str, start: SystemTime) -> Result<Vec<(String, Duration)>> {
    let start = start.duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    let start = nanos_of_day(start);
    let lines = log.lines().filter_map(|line| Some((line, line.split_once(MARK)?.1)));
    lines
        .map(|(line, what)| {
            let time = time_of_day(line);
            let time = time.with_context(|| format!("a line of the log has no time: {line:?}"))?;
            // Past midnight the day's time starts over.
            let day = DAY.as_nanos();
            let after = (nanos_of_day(time) + day - start) % day;
            Ok((what.to_owned(), Duration::from_nanos(u64::try_from(after)?)))
        })
        .collect()
}

fn nanos_of_day(time: Duration) -> u128 {
    time.as_nanos() % DAY.as_nanos()
}

/// Of `2026-11-23T18:30:01.123456Z ...`.
fn time_of_day(line: &str) -> Option<Duration> {
    let (_, time) = line.split_once('T')?;
    let (time, _) = time.split_once('Z')?;
    let (hours, rest) = time.split_once(':')?;
    let (minutes, seconds) = rest.split_once(':')?;
    let seconds: f64 = seconds.parse().ok()?;
    let whole: u64 = hours.parse::<u64>().ok()? * 3600 + minutes.parse::<u64>().ok()? * 60;
    Some(Duration::from_secs(whole) + Duration::try_from_secs_f64(seconds).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds_of_day: f64) -> SystemTime {
        UNIX_EPOCH + 5 * DAY + Duration::from_secs_f64(seconds_of_day)
    }

    #[test]
    fn moments_are_counted_from_the_start_of_the_process() {
        let log = "2026-11-23T00:00:10.002500Z DEBUG vmm::run: timeline: it is up\nnoise\n";
        let moments = read(log, at(10.0)).unwrap();
        assert_eq!(moments, [("it is up".into(), Duration::from_micros(2500))]);
    }

    #[test]
    fn midnight_is_no_obstacle() {
        let log = "2026-11-23T00:00:00.001000Z DEBUG x: timeline: late";
        let moments = read(log, at(24.0 * 3600.0 - 0.001)).unwrap();
        assert!(moments[0].1.abs_diff(Duration::from_millis(2)) < Duration::from_micros(1));
    }

    #[test]
    fn a_moment_without_a_time_is_an_error_and_other_lines_are_not() {
        assert!(read("timeline: when?", at(0.0)).is_err());
        assert!(read("18:00 started\n", at(0.0)).unwrap().is_empty());
    }
}
