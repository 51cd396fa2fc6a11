//! Who a process runs as, from the guest's own `/etc/passwd` and `/etc/group`.
//!
//! The C library's lookup is not used: it loads plug-ins, which a static program cannot.

use crate::limits::CONFIG_FILE_MAX_BYTES;
use std::io::Read;

/// The numbers the kernel wants, and a home directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Further groups.
    pub groups: Vec<u32>,
    /// Home directory.
    pub home: String,
}

/// Why there is no such user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UserError {
    /// Not in `/etc/passwd`.
    #[error("user {user:?} is not in /etc/passwd")]
    UnknownUser {
        /// The name.
        user: String,
    },
    /// Not in `/etc/group`.
    #[error("group {group:?} is not in /etc/group")]
    UnknownGroup {
        /// The name.
        group: String,
    },
}

impl Identity {
    /// Resolves `name`, `uid`, `name:group`, `uid:gid` in the files of this guest. A number needs no
    /// entry; a name does. `None` is root.
    ///
    /// # Errors
    /// A name that has no entry.
    pub fn resolve(user: Option<&str>) -> Result<Self, UserError> {
        Self::resolve_in(user.unwrap_or("0"), &read("/etc/passwd"), &read("/etc/group"))
    }

    fn resolve_in(user: &str, passwd: &str, group: &str) -> Result<Self, UserError> {
        let (user, asked_group) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (user, None),
        };
        let number = user.parse::<u32>().ok();
        let entry = passwd.lines().filter_map(PasswdEntry::parse).find(|entry| match number {
            Some(uid) => entry.uid == uid,
            None => entry.name == user,
        });
        let (uid, entry_gid) = match (&entry, number) {
            (Some(entry), _) => (entry.uid, entry.gid),
            (None, Some(uid)) => (uid, if uid == 0 { 0 } else { uid }),
            (None, None) => return Err(UserError::UnknownUser { user: user.to_owned() }),
        };
        let gid = match asked_group {
            None => entry_gid,
            Some(asked) => match asked.parse::<u32>() {
                Ok(gid) => gid,
                Err(_) => group
                    .lines()
                    .filter_map(GroupEntry::parse)
                    .find(|entry| entry.name == asked)
                    .map(|entry| entry.gid)
                    .ok_or_else(|| UserError::UnknownGroup { group: asked.to_owned() })?,
            },
        };
        let name = entry.as_ref().map(|entry| entry.name);
        let groups = match (name, asked_group) {
            // As with Docker, naming a group means that group only.
            (Some(name), None) => memberships(name, group),
            _ => Vec::new(),
        };
        let home = match &entry {
            Some(entry) if !entry.home.is_empty() => entry.home.to_owned(),
            None if uid == 0 => "/root".to_owned(),
            _ => "/".to_owned(),
        };
        Ok(Self { uid, gid, groups, home })
    }
}

struct PasswdEntry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

impl<'a> PasswdEntry<'a> {
    /// `name:password:uid:gid:comment:home:shell`; lines of another shape are skipped.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1)?;
        Some(Self { name, uid, gid, home })
    }
}

struct GroupEntry<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl<'a> GroupEntry<'a> {
    /// `name:password:gid:member,member`.
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = fields.nth(1)?.parse().ok()?;
        Some(Self { name, gid, members: fields.next().unwrap_or("") })
    }
}

fn memberships(user: &str, group: &str) -> Vec<u32> {
    group
        .lines()
        .filter_map(GroupEntry::parse)
        .filter(|entry| entry.members.split(',').any(|member| member == user))
        .map(|entry| entry.gid)
        .collect()
}

/// A file of the guest; one that is missing or no text has no entries.
fn read(path: &str) -> String {
    let mut text = String::new();
    match std::fs::File::open(path) {
        Ok(file) => match file.take(CONFIG_FILE_MAX_BYTES).read_to_string(&mut text) {
            Ok(_) => text,
            Err(_) => String::new(),
        },
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken line\n\
                          web:x:33:34:web:/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\naudio:x:29:web,other\nvideo:x:44:other,web\nx:y:z\n";

    fn resolve(user: &str) -> Result<Identity, UserError> {
        Identity::resolve_in(user, PASSWD, GROUP)
    }

    #[test]
    fn a_name_brings_its_groups_and_home() {
        let web = Identity { uid: 33, gid: 34, groups: vec![29, 44], home: "/var/www".into() };
        assert_eq!(resolve("web"), Ok(web.clone()));
        assert_eq!(resolve("33"), Ok(web));
    }

    #[test]
    fn a_group_that_is_named_is_the_only_one() {
        let expected = Identity { uid: 33, gid: 29, groups: vec![], home: "/var/www".into() };
        assert_eq!(resolve("web:audio"), Ok(expected.clone()));
        assert_eq!(resolve("web:29"), Ok(expected));
    }

    #[test]
    fn a_number_needs_no_entry() {
        let expected = Identity { uid: 1000, gid: 1000, groups: vec![], home: "/".into() };
        assert_eq!(resolve("1000"), Ok(expected));
        assert_eq!(resolve("1000:7").unwrap().gid, 7);
        assert_eq!(Identity::resolve_in("0", "", "").unwrap().home, "/root");
    }

    #[test]
    fn names_without_an_entry_are_refused() {
        assert_eq!(resolve("nobody"), Err(UserError::UnknownUser { user: "nobody".into() }));
        assert_eq!(resolve("web:wheel"), Err(UserError::UnknownGroup { group: "wheel".into() }));
        assert!(resolve("").is_err());
    }

    proptest! {
        #[test]
        fn any_files_are_read_or_refused(user in ".{0,20}", passwd in "[a-z:0-9\n,]{0,200}", group in "[a-z:0-9\n,]{0,200}") {
            let _ = Identity::resolve_in(&user, &passwd, &group);
        }
    }
}
