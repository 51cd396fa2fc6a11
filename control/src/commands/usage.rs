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

/// Whose usage is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Of {
    Microvms { since: Option<Timestamp> },
    Versions { since: Option<Timestamp> },
    Microvm { id: String },
}

impl Of {
    fn path(&self) -> String {
        match self {
            Self::Microvms { since } | Self::Versions { since } => {
                format!("{PATH}?since={}", since.unwrap_or_default().0)
            }
            Self::Microvm { id } => {
                let id =
                    percent_encoding::utf8_percent_encode(id, percent_encoding::NON_ALPHANUMERIC);
                format!("{PATH}?microvm={id}")
            }
        }
    }

    /// The columns for people.
    fn members(&self) -> &'static [&'static str] {
        match self {
            Self::Microvms { .. } => &[
                "microvmId",
                "imageName",
                "state",
                "runningSeconds",
                "suspendedSeconds",
                "baselineVcpuSeconds",
                "burstVcpuSeconds",
                "memoryGiBSeconds",
                "snapshotGiBSeconds",
                "requests",
                "launches",
                "resumes",
            ],
            Self::Versions { .. } => {
                &["imageName", "imageVersion", "storedBytes", "storedSeconds", "storedGiBSeconds"]
            }
            Self::Microvm { .. } => &["time", "phase", "state", "afterMs", "steps"],
        }
    }
}

impl Commands {
    pub(super) async fn usage(&self, of: &Of) -> Result<(), CommandError> {
        let answer = self.lambda("GET", &of.path(), &Value::Null).await?;
        let items = &answer[if matches!(of, Of::Versions { .. }) { "versions" } else { "items" }];
        let items = items.as_array().map(Vec::as_slice).unwrap_or_default();
        if self.json {
            return self.table(items, &[]);
        }
        let readable: Vec<Value> = items.iter().map(readable).collect();
        self.table(&readable, of.members())
    }
}

/// Numbers as text: those of other lists are times. Steps stand in one cell.
fn readable(item: &Value) -> Value {
    let members = item.as_object().into_iter().flatten().map(|(name, value)| {
        let value = match value.as_f64() {
            Some(number) if value.is_f64() => json!(format!("{number:.1}")),
            Some(_) => json!(value.to_string()),
            None => value.as_array().map_or_else(|| value.clone(), |steps| json!(shown(steps))),
        };
        (name.clone(), value)
    });
    Value::Object(members.collect())
}

/// `files 1.2, pager 0.1`
fn shown(steps: &[Value]) -> String {
    let step = |step: &Value| {
        let name = step["name"].as_str().unwrap_or_default();
        format!("{name} {:.1}", step["ms"].as_f64().unwrap_or_default())
    };
    steps.iter().map(step).collect::<Vec<_>>().join(", ")
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
