//! Writing and reading events.

use rusqlite::{Transaction, params, params_from_iter, types::Value as Sql};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Logs, invalid, missing_if, require_group};
use crate::answer::ServiceError;
use crate::clock::Timestamp;
use crate::store::{StoreError, attempt};

/// Events of one request.
const BATCH_EVENTS_MAX: usize = 10_000;
/// Bytes of one request; each event counts 26 more than its text.
const BATCH_BYTES_MAX: usize = 1 << 20;
const EVENT_OVERHEAD_BYTES: usize = 26;
/// Events of one answer.
const PAGE_EVENTS_MAX: usize = 10_000;
/// Bytes of one answer's texts.
const PAGE_BYTES_MAX: usize = 1 << 20;
const STREAM_NAMES_MAX: usize = 100;
/// Dropping the oldest events makes this share of the room free, so that it is done seldom.
const DROPPED_SHARE: u64 = 16;

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Put {
    log_group_name: String,
    log_stream_name: String,
    log_events: Vec<NewEvent>,
    #[serde(rename = "sequenceToken")]
    _sequence_token: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewEvent {
    timestamp: i64,
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Get {
    log_group_name: Option<String>,
    log_group_identifier: Option<String>,
    log_stream_name: String,
    start_time: Option<i64>,
    end_time: Option<i64>,
    next_token: Option<String>,
    limit: Option<usize>,
    start_from_head: Option<bool>,
    #[serde(rename = "unmask")]
    _unmask: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Filter {
    log_group_name: Option<String>,
    log_group_identifier: Option<String>,
    log_stream_names: Option<Vec<String>>,
    log_stream_name_prefix: Option<String>,
    start_time: Option<i64>,
    end_time: Option<i64>,
    filter_pattern: Option<String>,
    next_token: Option<String>,
    limit: Option<usize>,
    /// It always is.
    #[serde(rename = "interleaved")]
    _interleaved: Option<bool>,
    #[serde(rename = "unmask")]
    _unmask: Option<bool>,
}

struct Event {
    id: i64,
    stream: String,
    time: i64,
    ingested: i64,
    message: String,
}

impl Logs {
    pub(super) fn put(&self, input: Put) -> Result<Value, ServiceError> {
        let group = self.group_name(&input.log_group_name)?;
        let stream = self.stream_name(&input.log_stream_name)?;
        let events = input.log_events;
        let bytes: usize =
            events.iter().map(|event| event.message.len() + EVENT_OVERHEAD_BYTES).sum();
        if events.is_empty() || events.len() > BATCH_EVENTS_MAX || bytes > BATCH_BYTES_MAX {
            return Err(invalid("logEvents has 1 to 10000 events of at most 1048576 bytes in all"));
        }
        if events.iter().any(|event| event.timestamp < 0 || event.message.is_empty()) {
            return Err(invalid("An event's timestamp is negative, or its message empty."));
        }
        if events.is_sorted_by_key(|event| event.timestamp) {
            self.append(&group, &stream, &events)?;
            return Ok(json!({ "nextSequenceToken": "0" }));
        }
        Err(invalid("Log events in a single PutLogEvents request must be in chronological order."))
    }

    /// Adds lines of the control plane's own, and what they need to be in.
    pub fn add_lines(
        &self,
        group: &str,
        stream: &str,
        lines: Vec<(Timestamp, String)>,
    ) -> Result<(), ServiceError> {
        let (group, stream) = (self.group_name(group)?, self.stream_name(stream)?);
        self.store.write(|transaction| {
            let make = || {
                let now = Timestamp::now().0;
                let sql = "INSERT INTO log_group VALUES (?1, ?2) ON CONFLICT DO NOTHING";
                transaction.execute(sql, params![group, now])?;
                let sql = "INSERT INTO log_stream VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
                transaction.execute(sql, params![group, stream, now])
            };
            attempt("make a log stream", make).map_err(ServiceError::from)
        })?;
        let event = |(time, message): (Timestamp, String)| NewEvent { timestamp: time.0, message };
        let events: Vec<NewEvent> = lines.into_iter().map(event).collect();
        self.append(&group, &stream, &events)
    }

    fn append(&self, group: &str, stream: &str, events: &[NewEvent]) -> Result<(), ServiceError> {
        let now = Timestamp::now();
        self.store.write(|transaction| {
            require_group(transaction, group)?;
            let sql = "SELECT count(*) FROM log_stream WHERE log_group = ?1 AND name = ?2";
            let count = transaction.query_row(sql, [group, stream], |row| row.get::<_, i64>(0));
            missing_if(count.map_err(StoreError::at("look a log stream up"))? == 0, "log stream")?;
            let insert = || {
                let mut statement = transaction.prepare(
                    "INSERT INTO log_event (log_group, stream, time, ingested, message)
                     VALUES (?1, ?2, ?3, ?4, ?5)",
                )?;
                for event in events {
                    statement.execute(params![
                        group,
                        stream,
                        event.timestamp,
                        now.0,
                        event.message
                    ])?;
                }
                drop_oldest(transaction, self.settings.quotas.log_bytes)
            };
            Ok(attempt("add log events", insert)?)
        })
    }

    pub(super) fn get(&self, input: Get) -> Result<Value, ServiceError> {
        let group = self.one_group(input.log_group_name, input.log_group_identifier)?;
        let stream = self.stream_name(&input.log_stream_name)?;
        // A token says from which event on, and in which direction.
        let (is_forward, from) = match input.next_token.as_deref() {
            None => (input.start_from_head.unwrap_or(false), None),
            Some(token) => {
                let (direction, place) = token.split_at_checked(2).unwrap_or_default();
                let place = place.parse().ok().filter(|_| matches!(direction, "f/" | "b/"));
                let place = place.ok_or_else(|| invalid("The specified nextToken is invalid."))?;
                (direction == "f/", Some(place))
            }
        };
        let mut query = Query::of(&group);
        query.and("stream = ?", Sql::Text(stream.clone()));
        query.times(input.start_time, input.end_time);
        if let Some(from) = from {
            query.and(if is_forward { "id > ?" } else { "id < ?" }, Sql::Integer(from));
        }
        let limit = limit(input.limit)?;
        let mut events = self.store.read(|transaction| {
            require_group(transaction, &group)?;
            let sql = "SELECT count(*) FROM log_stream WHERE log_group = ?1 AND name = ?2";
            let count = transaction.query_row(sql, [&group, &stream], |row| row.get::<_, i64>(0));
            missing_if(count.map_err(StoreError::at("look a log stream up"))? == 0, "log stream")?;
            query.run(transaction, if is_forward { "id" } else { "id DESC" }, limit)
        })?;
        if !is_forward {
            events.reverse();
        }
        let here = from.unwrap_or(0);
        let last = events.last().map_or(here, |event| event.id);
        let first = events.first().map_or(here, |event| event.id);
        let shown: Vec<Value> = events
            .iter()
            .map(|event| {
                json!({ "timestamp": event.time, "message": event.message, "ingestionTime": event.ingested })
            })
            .collect();
        Ok(json!({
            "events": shown,
            "nextForwardToken": format!("f/{last}"),
            "nextBackwardToken": format!("b/{first}"),
        }))
    }

    pub(super) fn filter(&self, input: Filter) -> Result<Value, ServiceError> {
        let group = self.one_group(input.log_group_name, input.log_group_identifier)?;
        let mut query = Query::of(&group);
        query.times(input.start_time, input.end_time);
        match (input.log_stream_names, input.log_stream_name_prefix) {
            (None, None) => {}
            (None, Some(prefix)) => {
                query.and("substr(stream, 1, length(?)) = ?", Sql::Text(prefix));
            }
            (Some(names), None) if (1..=STREAM_NAMES_MAX).contains(&names.len()) => {
                query.any("stream", names);
            }
            _ => {
                return Err(invalid(
                    "logStreamNames has 1 to 100 names, or logStreamNamePrefix is given.",
                ));
            }
        }
        for word in words(input.filter_pattern.as_deref().unwrap_or_default())? {
            query.and("instr(message, ?) > 0", Sql::Text(word));
        }
        if let Some(token) = input.next_token {
            let place = token
                .split_once('/')
                .and_then(|(time, id)| Some((time.parse::<i64>().ok()?, id.parse::<i64>().ok()?)));
            let (time, id) = place.ok_or_else(|| invalid("The specified nextToken is invalid."))?;
            query.after(time, id);
        }
        let limit = limit(input.limit)?;
        let events = self.store.read(|transaction| {
            require_group(transaction, &group)?;
            query.run(transaction, "time, id", limit)
        })?;
        let shown: Vec<Value> = events
            .iter()
            .map(|event| {
                json!({
                    "logStreamName": event.stream, "timestamp": event.time, "message": event.message,
                    "ingestionTime": event.ingested, "eventId": format!("{:020}", event.id),
                })
            })
            .collect();
        let is_full = events.len() == limit || bytes_of(&events) >= PAGE_BYTES_MAX;
        let next = events.last().filter(|_| is_full);
        let next = next.map(|event| format!("{}/{}", event.time, event.id));
        Ok(json!({ "events": shown, "searchedLogStreams": [], "nextToken": next }))
    }
}

/// A query of one group's events. Only our own words get into its text; values are bound.
struct Query {
    condition: String,
    values: Vec<Sql>,
}

impl Query {
    fn of(group: &str) -> Self {
        Self { condition: "log_group = ?1".into(), values: vec![Sql::Text(group.into())] }
    }

    /// Each `?` of the condition is the value.
    fn and(&mut self, condition: &str, value: Sql) {
        self.values.push(value);
        let place = format!("?{}", self.values.len());
        self.condition = format!("{} AND {}", self.condition, condition.replace('?', &place));
    }

    fn any(&mut self, column: &str, names: Vec<String>) {
        let mut places = Vec::new();
        for name in names {
            self.values.push(Sql::Text(name));
            places.push(format!("?{}", self.values.len()));
        }
        self.condition = format!("{} AND {column} IN ({})", self.condition, places.join(", "));
    }

    fn times(&mut self, start: Option<i64>, end: Option<i64>) {
        if let Some(start) = start {
            self.and("time >= ?", Sql::Integer(start));
        }
        if let Some(end) = end {
            self.and("time <= ?", Sql::Integer(end));
        }
    }

    fn after(&mut self, time: i64, id: i64) {
        self.values.extend([Sql::Integer(time), Sql::Integer(id)]);
        let (time, id) = (self.values.len() - 1, self.values.len());
        self.condition = format!("{} AND (time, id) > (?{time}, ?{id})", self.condition);
    }

    fn run(
        &self,
        transaction: &Transaction<'_>,
        order: &str,
        limit: usize,
    ) -> Result<Vec<Event>, ServiceError> {
        let sql = format!(
            "SELECT id, stream, time, ingested, message FROM log_event WHERE {} ORDER BY {order} LIMIT {limit}",
            self.condition
        );
        let read = || {
            let mut statement = transaction.prepare(&sql)?;
            let mut rows = statement.query(params_from_iter(&self.values))?;
            let (mut events, mut bytes) = (Vec::new(), 0);
            while let Some(row) = rows.next()? {
                let message: String = row.get(4)?;
                bytes += message.len();
                events.push(Event {
                    id: row.get(0)?,
                    stream: row.get(1)?,
                    time: row.get(2)?,
                    ingested: row.get(3)?,
                    message,
                });
                if bytes >= PAGE_BYTES_MAX {
                    break;
                }
            }
            Ok(events)
        };
        Ok(attempt("read log events", read)?)
    }
}

fn bytes_of(events: &[Event]) -> usize {
    events.iter().map(|event| event.message.len()).sum()
}

fn limit(asked: Option<usize>) -> Result<usize, ServiceError> {
    let limit = asked.unwrap_or(PAGE_EVENTS_MAX);
    if (1..=PAGE_EVENTS_MAX).contains(&limit) {
        return Ok(limit);
    }
    Err(invalid("limit is 1 to 10000"))
}

/// Patterns of words that all have to occur, each bare or in double quotes. The rest of the
/// language (JSON selectors, `-`, `?`, `[...]`, `%...%`) is refused.
fn words(pattern: &str) -> Result<Vec<String>, ServiceError> {
    let refuse =
        || invalid("filterPattern: words, bare or in double quotes, are all that is supported");
    let (mut words, mut rest) = (Vec::new(), pattern.trim());
    while !rest.is_empty() {
        let (word, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').ok_or_else(refuse)?,
            None => rest.split_once(char::is_whitespace).unwrap_or((rest, "")),
        };
        let is_bare = !rest.starts_with('"');
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        if word.is_empty() || (is_bare && !word.chars().all(is_word)) {
            return Err(refuse());
        }
        words.push(word.to_owned());
        rest = after.trim_start();
    }
    Ok(words)
}

fn drop_oldest(transaction: &Transaction<'_>, bytes_max: u64) -> Result<(), rusqlite::Error> {
    let size = |transaction: &Transaction<'_>| {
        transaction.query_row("SELECT bytes FROM log_size", [], |row| row.get::<_, i64>(0))
    };
    let bytes_max = i64::try_from(bytes_max).unwrap_or(i64::MAX);
    if size(transaction)? <= bytes_max {
        return Ok(());
    }
    let wanted = bytes_max - bytes_max / DROPPED_SHARE as i64;
    while size(transaction)? > wanted {
        let dropped = transaction.execute(
            "DELETE FROM log_event WHERE id IN (SELECT id FROM log_event ORDER BY id LIMIT 1000)",
            [],
        )?;
        if dropped == 0 {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_words_or_refused() {
        assert_eq!(words("ERROR \"two words\"").unwrap(), ["ERROR", "two words"]);
        assert!(words("").unwrap().is_empty());
        for pattern in ["{ $.a = 1 }", "-x", "?a ?b", "[a, b]", "%x%", "\"open", "\"\""] {
            assert!(words(pattern).is_err(), "{pattern}");
        }
    }
}
