//! IAM, as far as roles for images and microVMs go: they are kept, with the policies attached to
//! them. Nobody is refused anything because of a policy: this host has one user.

use std::sync::Arc;

use regex::Regex;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use crate::answer::{Answer, ServiceError};
use crate::clock::Timestamp;
use crate::form::{Form, Xml, response};
use crate::http::Call;
use crate::settings::Settings;
use crate::store::{Store, StoreError, attempt};

const NAMESPACE: &str = "https://iam.amazonaws.com/doc/2010-05-08/";
/// Policies that may be attached to a role.
const POLICIES_MAX: usize = 20;
const TRUST_BYTES_MAX: usize = 2048;
const DESCRIPTION_CHARS_MAX: usize = 1000;
/// Pages are this long unless another length is asked for.
const PAGE_ITEMS: usize = 100;
const PAGE_ITEMS_MAX: usize = 1000;

/// The roles of the account.
pub struct Iam {
    store: Arc<Store>,
    settings: Arc<Settings>,
    name: Regex,
    path: Regex,
    policy: Regex,
}

struct Role {
    name: String,
    id: String,
    path: String,
    created: Timestamp,
    trust: String,
    description: Option<String>,
    max_session: i64,
}

impl Iam {
    /// On this store.
    pub fn new(store: Arc<Store>, settings: Arc<Settings>) -> Result<Self, regex::Error> {
        Ok(Self {
            store,
            settings,
            name: Regex::new(r"^[A-Za-z0-9_+=,.@-]{1,64}$")?,
            path: Regex::new(r"^/$|^/[!-~]{1,510}/$")?,
            policy: Regex::new(
                r"^arn:aws[a-z-]*:iam::(aws|[0-9]{12}):policy/[A-Za-z0-9_+=,.@/-]{1,512}$",
            )?,
        })
    }

    /// Answers a request.
    pub fn answer(&self, call: &Call) -> Result<Answer, ServiceError> {
        let mut form = Form::of(call)?;
        let action = form.required("Action")?;
        match action.as_str() {
            "CreateRole" => self.create(form),
            "GetRole" => {
                let name = self.role_name(&mut form)?;
                form.finish()?;
                let role = self.store.read(|transaction| find(transaction, &name))?;
                Ok(response(NAMESPACE, "GetRole", |xml| self.write(xml, &role)))
            }
            "ListRoles" => self.list(form),
            "DeleteRole" => self.delete(form),
            "AttachRolePolicy" | "DetachRolePolicy" => self.attach(form, &action),
            "ListAttachedRolePolicies" => self.list_attached(form),
            // What Terraform and cleaning scripts ask of a role that has none of it.
            "ListRolePolicies" => self.list_none(form, &action, "PolicyNames"),
            "ListInstanceProfilesForRole" => self.list_none(form, &action, "InstanceProfiles"),
            other => {
                let text = format!(
                    "IAM has no action {other} here: roles and the policies attached to them are all."
                );
                Err(ServiceError::new(400, "InvalidAction", text))
            }
        }
    }

    fn create(&self, mut form: Form) -> Result<Answer, ServiceError> {
        let name = self.role_name(&mut form)?;
        let path = form.take("Path").unwrap_or_else(|| "/".into());
        if !self.path.is_match(&path) {
            return Err(wrong("Path", "begins and ends with '/'"));
        }
        let trust = form.required("AssumeRolePolicyDocument")?;
        let is_object = serde_json::from_str::<serde_json::Map<_, serde_json::Value>>(&trust);
        if trust.len() > TRUST_BYTES_MAX || is_object.is_err() {
            let text = format!(
                "AssumeRolePolicyDocument is not a JSON object of at most {TRUST_BYTES_MAX} bytes."
            );
            return Err(ServiceError::new(400, "MalformedPolicyDocument", text));
        }
        let description = form.take("Description");
        if description.as_ref().is_some_and(|text| text.chars().count() > DESCRIPTION_CHARS_MAX) {
            return Err(wrong("Description", "has at most 1000 characters"));
        }
        let max_session = match form.take("MaxSessionDuration") {
            None => 3600,
            Some(text) => text
                .parse()
                .ok()
                .filter(|seconds| (3600..=43200).contains(seconds))
                .ok_or_else(|| wrong("MaxSessionDuration", "is 3600 to 43200"))?,
        };
        form.finish()?;
        let id = uuid::Uuid::new_v4().simple().to_string().to_uppercase();
        let id = format!("AROA{}", id.get(..17).unwrap_or_default());
        let created = Timestamp::now();
        let role = Role { name, id, path, created, trust, description, max_session };
        self.store.write(|transaction| self.insert(transaction, &role))?;
        Ok(response(NAMESPACE, "CreateRole", |xml| self.write(xml, &role)))
    }

    fn insert(&self, transaction: &Transaction<'_>, role: &Role) -> Result<(), ServiceError> {
        let at = StoreError::at("add a role");
        let count: usize = transaction
            .query_row("SELECT count(*) FROM role", [], |row| row.get(0))
            .map_err(StoreError::at("count roles"))?;
        if count >= self.settings.quotas.roles {
            let text = format!("Cannot exceed quota for RolesPerAccount: {count}");
            return Err(ServiceError::new(409, "LimitExceeded", text));
        }
        let added = transaction.execute(
            "INSERT INTO role VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT DO NOTHING",
            params![
                role.name,
                role.id,
                role.path,
                role.created.0,
                role.trust,
                role.description,
                role.max_session
            ],
        );
        match added.map_err(at)? {
            0 => {
                let text = format!("Role with name {} already exists.", role.name);
                Err(ServiceError::new(409, "EntityAlreadyExists", text))
            }
            _ => Ok(()),
        }
    }

    fn list(&self, mut form: Form) -> Result<Answer, ServiceError> {
        let prefix = form.take("PathPrefix").unwrap_or_default();
        let page = Page::take(&mut form)?;
        form.finish()?;
        let roles = self.store.read(|transaction| {
            let read = || {
                let mut statement = transaction.prepare(
                    "SELECT * FROM role WHERE name > ?1 AND substr(path, 1, length(?2)) = ?2
                     ORDER BY name LIMIT ?3",
                )?;
                let rows =
                    statement.query_map(params![page.after, prefix, page.length + 1], Role::of)?;
                rows.collect::<Result<Vec<_>, _>>()
            };
            attempt("list roles", read).map_err(ServiceError::from)
        })?;
        Ok(response(NAMESPACE, "ListRoles", |xml| {
            xml.element("Roles", |xml| {
                for role in roles.iter().take(page.length) {
                    xml.element("member", |xml| self.write_inner(xml, role));
                }
            });
            page.write_end(xml, roles.iter().map(|role| role.name.as_str()));
        }))
    }

    fn delete(&self, mut form: Form) -> Result<Answer, ServiceError> {
        let name = self.role_name(&mut form)?;
        form.finish()?;
        self.store.write(|transaction| {
            find(transaction, &name)?;
            if !attached(transaction, &name)?.is_empty() {
                let text = "Cannot delete entity, must detach all policies first.";
                return Err(ServiceError::new(409, "DeleteConflict", text));
            }
            let deleted = transaction.execute("DELETE FROM role WHERE name = ?1", [&name]);
            deleted.map_err(StoreError::at("delete a role"))?;
            Ok(())
        })?;
        Ok(response(NAMESPACE, "DeleteRole", |_| {}))
    }

    fn attach(&self, mut form: Form, action: &str) -> Result<Answer, ServiceError> {
        let name = self.role_name(&mut form)?;
        let policy = form.required("PolicyArn")?;
        form.finish()?;
        if !self.policy.is_match(&policy) {
            return Err(ServiceError::new(
                400,
                "InvalidInput",
                format!("ARN {policy} is not valid."),
            ));
        }
        self.store.write(|transaction| {
            find(transaction, &name)?;
            let known = attached(transaction, &name)?;
            if action == "AttachRolePolicy" {
                if !known.contains(&policy) && known.len() >= POLICIES_MAX {
                    let text = format!("Cannot exceed quota for PoliciesPerRole: {POLICIES_MAX}");
                    return Err(ServiceError::new(409, "LimitExceeded", text));
                }
                let sql = "INSERT INTO attached_policy VALUES (?1, ?2) ON CONFLICT DO NOTHING";
                let added = transaction.execute(sql, [&name, &policy]);
                added.map_err(StoreError::at("attach a policy"))?;
                return Ok(());
            }
            let sql = "DELETE FROM attached_policy WHERE role = ?1 AND arn = ?2";
            let deleted = transaction.execute(sql, [&name, &policy]);
            if deleted.map_err(StoreError::at("detach a policy"))? == 0 {
                return Err(no_such(format!("Policy {policy} was not found.")));
            }
            Ok(())
        })?;
        Ok(response(NAMESPACE, action, |_| {}))
    }

    fn list_attached(&self, mut form: Form) -> Result<Answer, ServiceError> {
        let name = self.role_name(&mut form)?;
        let page = Page::take(&mut form)?;
        form.finish()?;
        let policies = self.store.read(|transaction| {
            find(transaction, &name)?;
            attached(transaction, &name)
        })?;
        let rest: Vec<&String> = policies.iter().filter(|arn| **arn > page.after).collect();
        Ok(response(NAMESPACE, "ListAttachedRolePolicies", |xml| {
            xml.element("AttachedPolicies", |xml| {
                for arn in rest.iter().take(page.length) {
                    xml.element("member", |xml| {
                        let name = arn.rsplit('/').next().unwrap_or_default();
                        xml.text("PolicyName", name).text("PolicyArn", arn);
                    });
                }
            });
            page.write_end(xml, rest.iter().map(|arn| arn.as_str()));
        }))
    }

    fn list_none(&self, mut form: Form, action: &str, what: &str) -> Result<Answer, ServiceError> {
        let name = self.role_name(&mut form)?;
        Page::take(&mut form)?;
        form.finish()?;
        self.store.read(|transaction| find(transaction, &name))?;
        Ok(response(NAMESPACE, action, |xml| {
            xml.element(what, |_| {}).text("IsTruncated", "false");
        }))
    }

    fn role_name(&self, form: &mut Form) -> Result<String, ServiceError> {
        let name = form.required("RoleName")?;
        if self.name.is_match(&name) {
            return Ok(name);
        }
        Err(wrong("RoleName", "has 1 to 64 letters, digits, and characters of _+=,.@-"))
    }

    fn write(&self, xml: &mut Xml, role: &Role) {
        xml.element("Role", |xml| self.write_inner(xml, role));
    }

    fn write_inner(&self, xml: &mut Xml, role: &Role) {
        // The service gives policies back percent-encoded, and clients decode them.
        let trust = percent_encoding::utf8_percent_encode(&role.trust, UNRESERVED).to_string();
        let Role { name, id, path, created, .. } = role;
        xml.text("Path", path).text("RoleName", name).text("RoleId", id);
        xml.text("Arn", &format!("arn:aws:iam::{}:role{path}{name}", self.settings.account));
        xml.text("CreateDate", &created.iso8601()).text("AssumeRolePolicyDocument", &trust);
        if let Some(description) = &role.description {
            xml.text("Description", description);
        }
        xml.text("MaxSessionDuration", &role.max_session.to_string());
    }
}

const UNRESERVED: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

impl Role {
    fn of(row: &Row<'_>) -> Result<Self, rusqlite::Error> {
        Ok(Self {
            name: row.get(0)?,
            id: row.get(1)?,
            path: row.get(2)?,
            created: Timestamp(row.get(3)?),
            trust: row.get(4)?,
            description: row.get(5)?,
            max_session: row.get(6)?,
        })
    }
}

/// Which items of a list.
struct Page {
    after: String,
    length: usize,
}

impl Page {
    fn take(form: &mut Form) -> Result<Self, ServiceError> {
        let length = match form.take("MaxItems") {
            None => PAGE_ITEMS,
            Some(text) => text
                .parse()
                .ok()
                .filter(|items| (1..=PAGE_ITEMS_MAX).contains(items))
                .ok_or_else(|| wrong("MaxItems", "is 1 to 1000"))?,
        };
        Ok(Self { after: form.take("Marker").unwrap_or_default(), length })
    }

    fn write_end<'a>(&self, xml: &mut Xml, keys: impl Iterator<Item = &'a str>) {
        let keys: Vec<&str> = keys.collect();
        let is_truncated = keys.len() > self.length;
        xml.text("IsTruncated", if is_truncated { "true" } else { "false" });
        if let Some(last) = keys.get(self.length.saturating_sub(1)).filter(|_| is_truncated) {
            xml.text("Marker", last);
        }
    }
}

fn find(transaction: &Transaction<'_>, name: &str) -> Result<Role, ServiceError> {
    let found =
        transaction.query_row("SELECT * FROM role WHERE name = ?1", [name], Role::of).optional();
    let role = found.map_err(StoreError::at("look a role up"))?;
    role.ok_or_else(|| no_such(format!("The role with name {name} cannot be found.")))
}

fn attached(transaction: &Transaction<'_>, role: &str) -> Result<Vec<String>, ServiceError> {
    let read = || {
        let sql = "SELECT arn FROM attached_policy WHERE role = ?1 ORDER BY arn";
        transaction.prepare(sql)?.query_map([role], |row| row.get(0))?.collect()
    };
    Ok(attempt("list policies", read)?)
}

/// The policies that are attached to a role, if there is such a role.
pub fn policies_of(
    transaction: &Transaction<'_>,
    role: &str,
) -> Result<Option<Vec<String>>, StoreError> {
    let read = || {
        let sql = "SELECT 1 FROM role WHERE name = ?1";
        let is_there = transaction.query_row(sql, [role], |_| Ok(())).optional()?.is_some();
        let sql = "SELECT arn FROM attached_policy WHERE role = ?1";
        let arns = transaction.prepare(sql)?.query_map([role], |row| row.get(0))?.collect();
        let arns: Result<Vec<String>, _> = arns;
        Ok(is_there.then_some(arns?))
    };
    attempt("list policies", read)
}

fn no_such(text: String) -> ServiceError {
    ServiceError::new(404, "NoSuchEntity", text)
}

fn wrong(name: &str, rule: &str) -> ServiceError {
    ServiceError::new(400, "ValidationError", format!("{name} is not valid: it {rule}."))
}
