//! CloudWatch Logs, as far as reading a microVM's lines goes: groups, streams, events.
//!
//! `aws logs tail`, `filter-log-events`, `get-log-events` and what is needed to write. All events
//! together have a bound; beyond it the oldest are dropped.

mod events;

use std::sync::Arc;

use regex::Regex;
use rusqlite::{Transaction, params};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::answer::{Answer, ServiceError};
use crate::clock::Timestamp;
use crate::http::Call;
use crate::settings::Settings;
use crate::store::{Store, StoreError, attempt};

const TARGET: &str = "Logs_20140328.";
/// Groups and streams of a page.
const PAGE_ITEMS_MAX: usize = 50;
/// Groups of the account.
const GROUPS_MAX: usize = 10_000;
/// Two names that documents give the same group; events are kept under the first.
const GROUP_PREFIXES: (&str, &str) = ("/aws/lambda-microvms/", "/aws/lambda/microvms/");

/// The log groups of the account.
pub struct Logs {
    store: Arc<Store>,
    settings: Arc<Settings>,
    group: Regex,
    stream: Regex,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Group {
    log_group_name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Stream {
    log_group_name: String,
    log_stream_name: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct DescribeGroups {
    log_group_name_prefix: Option<String>,
    log_group_name_pattern: Option<String>,
    next_token: Option<String>,
    limit: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct DescribeStreams {
    log_group_name: Option<String>,
    log_group_identifier: Option<String>,
    log_stream_name_prefix: Option<String>,
    order_by: Option<String>,
    descending: Option<bool>,
    next_token: Option<String>,
    limit: Option<usize>,
}

impl Logs {
    /// On this store.
    pub fn new(store: Arc<Store>, settings: Arc<Settings>) -> Result<Self, regex::Error> {
        Ok(Self {
            store,
            settings,
            group: Regex::new(r"^[A-Za-z0-9_/.#-]{1,512}$")?,
            stream: Regex::new(r"^[^:*]{1,512}$")?,
        })
    }

    /// Answers a request.
    pub fn answer(&self, call: &Call) -> Result<Answer, ServiceError> {
        let target = call.headers.get("x-amz-target").and_then(|value| value.to_str().ok());
        let operation = target.and_then(|target| target.strip_prefix(TARGET)).unwrap_or_default();
        let body = call.body.as_ref();
        let value = match operation {
            "CreateLogGroup" => self.create_group(parse(body)?)?,
            "DeleteLogGroup" => self.delete_group(&parse(body)?)?,
            "DescribeLogGroups" => self.describe_groups(parse(body)?)?,
            "CreateLogStream" => self.create_stream(&parse(body)?)?,
            "DeleteLogStream" => self.delete_stream(&parse(body)?)?,
            "DescribeLogStreams" => self.describe_streams(parse(body)?)?,
            "PutLogEvents" => self.put(parse(body)?)?,
            "GetLogEvents" => self.get(parse(body)?)?,
            "FilterLogEvents" => self.filter(parse(body)?)?,
            other => {
                let text = format!("Logs has no operation '{other}' here.");
                return Err(ServiceError::new(400, "UnknownOperationException", text));
            }
        };
        Ok(match value {
            Value::Null => Answer::json_1_1(&json!({})),
            value => Answer::json_1_1(&value),
        })
    }

    fn create_group(&self, input: Group) -> Result<Value, ServiceError> {
        let name = self.group_name(&input.log_group_name)?;
        let now = Timestamp::now();
        self.store.write(|transaction| {
            let count: usize = transaction
                .query_row("SELECT count(*) FROM log_group", [], |row| row.get(0))
                .map_err(StoreError::at("count log groups"))?;
            if count >= GROUPS_MAX {
                let text = "Resource limit exceeded.";
                return Err(ServiceError::new(400, "LimitExceededException", text));
            }
            let sql = "INSERT INTO log_group VALUES (?1, ?2) ON CONFLICT DO NOTHING";
            let added = transaction.execute(sql, params![name, now.0]);
            exists_if(added.map_err(StoreError::at("add a log group"))? == 0, "log group")
        })?;
        Ok(Value::Null)
    }

    fn delete_group(&self, input: &Group) -> Result<Value, ServiceError> {
        let name = self.group_name(&input.log_group_name)?;
        self.store.write(|transaction| {
            let deleted = transaction.execute("DELETE FROM log_group WHERE name = ?1", [&name]);
            missing_if(deleted.map_err(StoreError::at("delete a log group"))? == 0, "log group")
        })?;
        Ok(Value::Null)
    }

    fn describe_groups(&self, input: DescribeGroups) -> Result<Value, ServiceError> {
        let prefix = canonical(&input.log_group_name_prefix.unwrap_or_default());
        let pattern = input.log_group_name_pattern.unwrap_or_default();
        let (after, limit) = page(input.next_token, input.limit)?;
        let found: Vec<(String, i64)> = self.store.read(|transaction| {
            let read = || {
                let sql = "SELECT name, created FROM log_group WHERE name > ?1
                     AND substr(name, 1, length(?2)) = ?2 AND instr(name, ?3) > 0 ORDER BY name LIMIT ?4";
                let mut statement = transaction.prepare(sql)?;
                let rows = statement.query_map(params![after, prefix, pattern, limit + 1], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })?;
                rows.collect()
            };
            attempt("list log groups", read).map_err(ServiceError::from)
        })?;
        let groups: Vec<Value> = found
            .iter()
            .take(limit)
            .map(|(name, created)| {
                let arn = self.arn(name);
                json!({
                    "logGroupName": name, "creationTime": created, "arn": format!("{arn}:*"),
                    "logGroupArn": arn, "metricFilterCount": 0, "storedBytes": 0,
                })
            })
            .collect();
        let next = next_token(&found, limit, |(name, _)| name);
        Ok(json!({ "logGroups": groups, "nextToken": next }))
    }

    fn create_stream(&self, input: &Stream) -> Result<Value, ServiceError> {
        let (group, stream) = self.names(input)?;
        let now = Timestamp::now();
        self.store.write(|transaction| {
            require_group(transaction, &group)?;
            let sql = "INSERT INTO log_stream VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING";
            let added = transaction.execute(sql, params![group, stream, now.0]);
            exists_if(added.map_err(StoreError::at("add a log stream"))? == 0, "log stream")
        })?;
        Ok(Value::Null)
    }

    fn delete_stream(&self, input: &Stream) -> Result<Value, ServiceError> {
        let (group, stream) = self.names(input)?;
        self.store.write(|transaction| {
            require_group(transaction, &group)?;
            let sql = "DELETE FROM log_stream WHERE log_group = ?1 AND name = ?2";
            let deleted = transaction.execute(sql, [&group, &stream]);
            missing_if(deleted.map_err(StoreError::at("delete a log stream"))? == 0, "log stream")
        })?;
        Ok(Value::Null)
    }

    fn describe_streams(&self, input: DescribeStreams) -> Result<Value, ServiceError> {
        let group = self.one_group(input.log_group_name, input.log_group_identifier)?;
        let by_time = match input.order_by.as_deref() {
            None | Some("LogStreamName") => false,
            Some("LastEventTime") => true,
            Some(_) => return Err(invalid("orderBy is LogStreamName or LastEventTime")),
        };
        let prefix = input.log_stream_name_prefix.unwrap_or_default();
        if by_time && !prefix.is_empty() {
            return Err(invalid("Cannot order by LastEventTime with a logStreamNamePrefix."));
        }
        let limit = page(None, input.limit)?.1;
        let offset: usize = match &input.next_token {
            None => 0,
            Some(token) => {
                token.parse().map_err(|_| invalid("The specified nextToken is invalid."))?
            }
        };
        let order = match (by_time, input.descending.unwrap_or(false)) {
            (false, false) => "s.name",
            (false, true) => "s.name DESC",
            (true, false) => "last, s.name",
            (true, true) => "last DESC, s.name",
        };
        type Found = (String, i64, Option<i64>, Option<i64>, Option<i64>);
        let found: Vec<Found> = self.store.read(|transaction| {
            require_group(transaction, &group)?;
            let read = || {
                let sql = format!(
                    "SELECT s.name, s.created, min(e.time), max(e.time) AS last, max(e.ingested)
                     FROM log_stream s LEFT JOIN log_event e ON e.log_group = s.log_group AND e.stream = s.name
                     WHERE s.log_group = ?1 AND substr(s.name, 1, length(?2)) = ?2
                     GROUP BY s.name ORDER BY {order} LIMIT ?3 OFFSET ?4"
                );
                let mut statement = transaction.prepare(&sql)?;
                let rows = statement.query_map(params![group, prefix, limit + 1, offset], |row| {
                    Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?))
                })?;
                rows.collect()
            };
            attempt("list log streams", read).map_err(ServiceError::from)
        })?;
        let arn = self.arn(&group);
        let streams: Vec<Value> = found
            .iter()
            .take(limit)
            .map(|(name, created, first, last, ingested)| {
                json!({
                    "logStreamName": name, "creationTime": created, "firstEventTimestamp": first,
                    "lastEventTimestamp": last, "lastIngestionTime": ingested,
                    "arn": format!("{arn}:log-stream:{name}"), "storedBytes": 0,
                })
            })
            .collect();
        let next = (found.len() > limit).then(|| (offset + limit).to_string());
        Ok(json!({ "logStreams": streams, "nextToken": next }))
    }

    /// A group's own name or its ARN; one of the two has to be given.
    fn one_group(&self, name: Option<String>, id: Option<String>) -> Result<String, ServiceError> {
        match (name, id) {
            (Some(name), None) => self.group_name(&name),
            (None, Some(id)) => {
                let start = self.arn("");
                let name = id.strip_prefix(&start).unwrap_or(&id);
                self.group_name(name.strip_suffix(":*").unwrap_or(name))
            }
            _ => Err(invalid("Exactly one of logGroupName and logGroupIdentifier is needed.")),
        }
    }

    fn names(&self, input: &Stream) -> Result<(String, String), ServiceError> {
        let group = self.group_name(&input.log_group_name)?;
        Ok((group, self.stream_name(&input.log_stream_name)?))
    }

    fn group_name(&self, name: &str) -> Result<String, ServiceError> {
        if self.group.is_match(name) {
            return Ok(canonical(name));
        }
        Err(invalid("logGroupName has 1 to 512 letters, digits, and characters of _/.#-"))
    }

    fn stream_name(&self, name: &str) -> Result<String, ServiceError> {
        if self.stream.is_match(name) {
            return Ok(name.into());
        }
        Err(invalid("logStreamName has 1 to 512 characters, none of them ':' or '*'"))
    }

    fn arn(&self, group: &str) -> String {
        let Settings { region, account, .. } = self.settings.as_ref();
        format!("arn:aws:logs:{region}:{account}:log-group:{group}")
    }
}

fn canonical(group: &str) -> String {
    match group.strip_prefix(GROUP_PREFIXES.1) {
        Some(rest) => format!("{}{rest}", GROUP_PREFIXES.0),
        None => group.into(),
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ServiceError> {
    let body = if body.is_empty() { b"{}" } else { body };
    serde_json::from_slice(body).map_err(|error| {
        let text =
            format!("The request is not understood, or asks for what is not supported: {error}");
        ServiceError::new(400, "InvalidParameterException", text)
    })
}

fn page(token: Option<String>, limit: Option<usize>) -> Result<(String, usize), ServiceError> {
    let limit = limit.unwrap_or(PAGE_ITEMS_MAX);
    if (1..=PAGE_ITEMS_MAX).contains(&limit) {
        return Ok((token.unwrap_or_default(), limit));
    }
    Err(invalid("limit is 1 to 50"))
}

fn next_token<T>(found: &[T], limit: usize, key: impl Fn(&T) -> &String) -> Option<&String> {
    found.get(limit)?;
    found.get(limit - 1).map(key)
}

fn require_group(transaction: &Transaction<'_>, name: &str) -> Result<(), ServiceError> {
    let sql = "SELECT count(*) FROM log_group WHERE name = ?1";
    let count = transaction.query_row(sql, [name], |row| row.get::<_, i64>(0));
    missing_if(count.map_err(StoreError::at("look a log group up"))? == 0, "log group")
}

fn missing_if(is_missing: bool, what: &str) -> Result<(), ServiceError> {
    let text = || format!("The specified {what} does not exist.");
    if is_missing {
        Err(ServiceError::new(400, "ResourceNotFoundException", text()))
    } else {
        Ok(())
    }
}

fn exists_if(exists: bool, what: &str) -> Result<(), ServiceError> {
    let text = || format!("The specified {what} already exists");
    if exists {
        Err(ServiceError::new(400, "ResourceAlreadyExistsException", text()))
    } else {
        Ok(())
    }
}

fn invalid(text: &str) -> ServiceError {
    ServiceError::new(400, "InvalidParameterException", text)
}
