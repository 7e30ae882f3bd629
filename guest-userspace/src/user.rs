//! `USER[:GROUP]` to numbers, by the image's own `/etc/passwd` and `/etc/group` (passwd(5),
//! group(5)).
//!
//! Read in the forked child: the files are the sandbox's, so they may be long, broken, or a pipe that
//! nobody writes to, and only the command in question feels it.

use std::fs;
use std::path::Path;

/// Who a command runs as.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups.
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
}

/// The two files.
#[derive(Debug, Default)]
pub(crate) struct Database {
    passwd: String,
    group: String,
}

#[derive(Debug)]
struct PasswdLine<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

#[derive(Debug)]
struct GroupLine<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

impl Database {
    /// An image without these files has only numbers.
    pub(crate) fn read(etc: &Path) -> Self {
        let text = |file| {
            let bytes = fs::read(etc.join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        Database {
            passwd: text("passwd"),
            group: text("group"),
        }
    }

    /// A name has to be known; a number has not, and belongs to group 0 then. With an explicit group
    /// there are no supplementary ones, else those that list the user.
    pub(crate) fn find(&self, user: &str) -> Result<Account, String> {
        let (user, group) = match user.split_once(':') {
            Some((user, group)) => (user, Some(group)),
            None => (user, None),
        };
        let number = user.parse::<u32>().ok();
        let entry = self.users().find(|entry| match number {
            Some(uid) => entry.uid == uid,
            None => entry.name == user,
        });
        let (uid, own_gid, name, home) = match (entry, number) {
            (Some(entry), _) => (entry.uid, entry.gid, entry.name, entry.home),
            (None, Some(uid)) => (uid, 0, "", "/"),
            (None, None) => return Err(format!("user: no `{user}` in the image's /etc/passwd")),
        };
        let (gid, groups) = match group {
            Some(group) => (self.find_group(group)?, Vec::new()),
            None => (own_gid, self.groups_of(name, own_gid)),
        };
        if uid == u32::MAX || gid == u32::MAX {
            return Err(format!(
                "user: {} means \"no change\" to the kernel",
                u32::MAX
            ));
        }
        Ok(Account {
            uid,
            gid,
            groups,
            home: if home.is_empty() { "/" } else { home }.to_owned(),
        })
    }

    fn find_group(&self, group: &str) -> Result<u32, String> {
        if let Ok(gid) = group.parse() {
            return Ok(gid);
        }
        let entry = self.groups().find(|entry| entry.name == group);
        entry
            .map(|entry| entry.gid)
            .ok_or_else(|| format!("user: no group `{group}` in the image's /etc/group"))
    }

    fn groups_of(&self, user: &str, own_gid: u32) -> Vec<u32> {
        let lists_user =
            |entry: &GroupLine<'_>| entry.members.split(',').any(|member| member == user);
        let mut groups = vec![own_gid];
        if !user.is_empty() {
            groups.extend(self.groups().filter(lists_user).map(|entry| entry.gid));
        }
        groups.sort_unstable();
        groups.dedup();
        groups
    }

    fn users(&self) -> impl Iterator<Item = PasswdLine<'_>> {
        self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            let home = fields.nth(1).unwrap_or_default();
            Some(PasswdLine {
                name,
                uid,
                gid,
                home,
            })
        })
    }

    fn groups(&self) -> impl Iterator<Item = GroupLine<'_>> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let gid = fields.nth(1)?.parse().ok()?;
            let members = fields.next().unwrap_or_default();
            Some(GroupLine { name, gid, members })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn database() -> Database {
        Database {
            passwd: "root:x:0:0:root:/root:/bin/sh\n\
                     # a comment\nbroken:x:many:1::/:\n\
                     app:x:1000:1001:An App:/srv/app:/bin/sh\nbare:x:5:6\n"
                .into(),
            group:
                "root:x:0:\nwheel:x:10:root,app\napp:x:1001:\nvideo:x:44:app\nweb:x:80:application\n"
                    .into(),
        }
    }

    fn account(uid: u32, gid: u32, groups: &[u32], home: &str) -> Account {
        Account {
            uid,
            gid,
            groups: groups.to_vec(),
            home: home.into(),
        }
    }

    #[test]
    fn names_and_numbers_are_found_with_their_groups() {
        let db = database();
        let app = account(1000, 1001, &[10, 44, 1001], "/srv/app");
        assert_eq!(db.find("app").unwrap(), app);
        assert_eq!(db.find("1000").unwrap(), app);
        assert_eq!(db.find("0").unwrap(), account(0, 0, &[0, 10], "/root"));
        assert_eq!(db.find("bare").unwrap(), account(5, 6, &[6], "/"));
    }

    #[test]
    fn an_explicit_group_is_the_only_one() {
        let db = database();
        assert_eq!(
            db.find("app:video").unwrap(),
            account(1000, 44, &[], "/srv/app")
        );
        assert_eq!(db.find("app:7").unwrap(), account(1000, 7, &[], "/srv/app"));
    }

    #[test]
    fn unknown_numbers_are_fine_and_unknown_names_are_not() {
        let db = database();
        assert_eq!(db.find("4242").unwrap(), account(4242, 0, &[0], "/"));
        for (user, named) in [
            ("nobody", "nobody"),
            ("app:nogroup", "nogroup"),
            ("", "``"),
            ("broken", "broken"),
            ("4294967295", "4294967295"),
        ] {
            let error = db.find(user).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
        assert_eq!(
            Database::default().find("0").unwrap(),
            account(0, 0, &[0], "/")
        );
    }
}
