//! `rotifer usage`: what microVMs have used, or when one came to each of its phases.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{CommandError, Commands};
use crate::clock::Timestamp;
use crate::usage::PATH;

/// The time in `--since`: one of RFC 3339, or how long ago, like `90m`, `24h` or `7d`.
pub fn since(text: &str, now: Timestamp) -> Option<Timestamp> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok().map(Timestamp);
    }
    let unit = text.chars().next_back()?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return None,
    };
    let count: u32 = text.strip_suffix(unit)?.parse().ok()?;
    Some(now.plus_seconds(-seconds * i64::from(count)))
}

impl Commands {
    pub(super) async fn usage(
        &self,
        microvm: Option<&str>,
        since: Option<Timestamp>,
    ) -> Result<(), CommandError> {
        let since = since.unwrap_or_default().0;
        let path = match microvm {
            Some(id) => {
                let id =
                    percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC);
                format!("{PATH}?microvm={id}")
            }
            None => format!("{PATH}?since={since}"),
        };
        let answer = self.lambda("GET", &path, &Value::Null).await?;
        let items = answer["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        if self.json {
            return self.table(items, &[]);
        }
        let members: &[&str] = match microvm {
            Some(_) => &["time", "phase", "state", "afterMs"],
            None => &[
                "microvmId",
                "imageName",
                "state",
                "runningSeconds",
                "suspendedSeconds",
                "baselineVcpuSeconds",
                "memoryGiBSeconds",
                "requests",
                "launches",
                "resumes",
            ],
        };
        let readable: Vec<Value> = items.iter().map(readable).collect();
        self.table(&readable, members)
    }
}

/// Numbers as text: those of other lists are times.
fn readable(item: &Value) -> Value {
    let members = item.as_object().into_iter().flatten().map(|(name, value)| {
        let value = match value.as_f64() {
            Some(number) if value.is_f64() => json!(format!("{number:.1}")),
            Some(_) => json!(value.to_string()),
            None => value.clone(),
        };
        (name.clone(), value)
    });
    Value::Object(members.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_said_as_such_or_as_how_long_ago() {
        let now = Timestamp(1_000_000_000_000);
        assert_eq!(since("90m", now), Some(Timestamp(1_000_000_000_000 - 5_400_000)));
        assert_eq!(since("1d", now), since("24h", now));
        assert_eq!(since("1970-01-01T00:00:01.5Z", now), Some(Timestamp(1500)));
        for wrong in ["", "h", "-1h", "1.5h", "1w", "yesterday", "99999999999d", "1\u{e4}"] {
            assert_eq!(since(wrong, now), None, "{wrong}");
        }
    }
}
