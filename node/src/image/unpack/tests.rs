use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::PathBuf;

use tar::{Builder, Header};

use super::*;

/// One entry of an archive under test.
struct Item {
    name: &'static str,
    kind: EntryType,
    mode: u32,
    body: &'static [u8],
    link: Option<&'static str>,
}

fn item(name: &'static str, kind: EntryType) -> Item {
    Item {
        name,
        kind,
        mode: 0o644,
        body: b"",
        link: None,
    }
}

fn file(name: &'static str, body: &'static [u8]) -> Item {
    Item {
        body,
        ..item(name, EntryType::Regular)
    }
}

fn directory(name: &'static str, mode: u32) -> Item {
    Item {
        mode,
        ..item(name, EntryType::Directory)
    }
}

fn link(name: &'static str, kind: EntryType, target: &'static str) -> Item {
    Item {
        link: Some(target),
        ..item(name, kind)
    }
}

/// Names go in as they are: the crate's own setters would refuse the hostile ones.
fn archive(items: &[Item]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for item in items {
        let mut header = Header::new_ustar();
        header.set_entry_type(item.kind);
        header.set_mode(item.mode);
        header.set_uid(1234);
        header.set_gid(2345);
        header.set_mtime(1_000_000);
        header.set_size(item.body.len() as u64);
        header.set_device_major(1).unwrap();
        header.set_device_minor(3).unwrap();
        let raw = header.as_old_mut();
        raw.name[..item.name.len()].copy_from_slice(item.name.as_bytes());
        if let Some(link) = item.link {
            raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_cksum();
        builder.append(&header, item.body).unwrap();
    }
    builder.into_inner().unwrap()
}

fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Unpacks into `root` inside a directory in which nothing else may appear.
fn unpacked(bytes: &[u8]) -> (tempfile::TempDir, PathBuf, Result<Report, UnpackError>) {
    let directory = tempfile::tempdir().unwrap();
    let into = directory.path().join("root");
    fs::create_dir(&into).unwrap();
    let report = unpack(bytes, &into, root());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    (directory, into, report)
}

#[test]
fn every_kind_with_its_metadata() {
    let (_directory, into, report) = unpacked(&archive(&[
        directory("./", 0o755),
        directory("etc/", 0o555),
        file("etc/passwd", b"root"),
        Item {
            mode: 0o4755,
            ..file("bin/su", b"program")
        },
        link("bin/sudo", EntryType::Link, "./bin/su"),
        link("lib", EntryType::Symlink, "usr/lib"),
        item("dev/null", EntryType::Char),
        item("run/fifo", EntryType::Fifo),
    ]));
    let report = report.unwrap();
    assert_eq!(report.entries, 8);
    let su = fs::metadata(into.join("bin/su")).unwrap();
    assert_eq!(su.mode() & 0o7777, 0o4755);
    assert_eq!(su.mtime(), 1_000_000);
    assert_eq!(su.ino(), fs::metadata(into.join("bin/sudo")).unwrap().ino());
    assert_eq!(
        fs::read_link(into.join("lib")).unwrap(),
        PathBuf::from("usr/lib")
    );
    let etc = fs::metadata(into.join("etc")).unwrap();
    assert_eq!((etc.mode() & 0o7777, etc.mtime()), (0o555, 1_000_000));
    let fifo = fs::metadata(into.join("run/fifo")).unwrap();
    assert!(fifo.file_type().is_fifo());
    if root() {
        assert_eq!((su.uid(), su.gid()), (1234, 2345));
        let null = fs::metadata(into.join("dev/null"));
        assert_eq!(null.is_ok(), report.devices_left_out == 0);
    } else {
        assert_eq!(report.devices_left_out, 1);
    }
}

#[test]
fn without_root_the_importer_can_still_read_everything() {
    let into = tempfile::tempdir().unwrap();
    let bytes = archive(&[
        Item {
            mode: 0,
            ..file("etc/gshadow", b"secret")
        },
        directory("closed/", 0),
        item("dev/null", EntryType::Char),
    ]);
    let report = unpack(bytes.as_slice(), into.path(), false).unwrap();
    assert_eq!(report.devices_left_out, 1);
    assert!(!into.path().join("dev/null").exists());
    let mode = |name| fs::metadata(into.path().join(name)).unwrap().mode() & 0o777;
    assert_eq!((mode("etc/gshadow"), mode("closed")), (0o400, 0o500));
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["../evil", "a/../../evil", "..", "a/.."] {
        let (_directory, _, report) = unpacked(&archive(&[file(name, b"x")]));
        assert!(
            matches!(&report, Err(UnpackError::Refused { path, .. }) if path == name),
            "{name}: {report:?}"
        );
    }
    let (_directory, _, report) =
        unpacked(&archive(&[link("a", EntryType::Link, "../../etc/passwd")]));
    assert!(matches!(report, Err(UnpackError::Refused { .. })));
}

#[test]
fn absolute_names_and_links_stay_inside() {
    let (_directory, into, report) = unpacked(&archive(&[
        file("/etc/hostname", b"inside"),
        directory("usr/lib/", 0o755),
        link("lib", EntryType::Symlink, "/usr/lib"),
        file("lib/x.so", b"library"),
        link("up", EntryType::Symlink, "../../../../usr"),
        file("up/y", b"why"),
    ]));
    report.unwrap();
    assert_eq!(fs::read(into.join("etc/hostname")).unwrap(), b"inside");
    assert_eq!(fs::read(into.join("usr/lib/x.so")).unwrap(), b"library");
    assert_eq!(fs::read(into.join("usr/y")).unwrap(), b"why");
}

#[test]
fn a_file_is_not_written_through_an_earlier_link() {
    let outside = tempfile::NamedTempFile::new().unwrap();
    fs::write(outside.path(), "untouched").unwrap();
    let target: &'static str = outside.path().to_str().unwrap().to_owned().leak();
    let (_directory, into, report) = unpacked(&archive(&[
        link("x", EntryType::Symlink, target),
        file("x", b"evil"),
    ]));
    report.unwrap();
    assert_eq!(fs::read_to_string(outside.path()).unwrap(), "untouched");
    assert_eq!(fs::read(into.join("x")).unwrap(), b"evil");
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    let (_directory, into, report) = unpacked(&archive(&[
        file("a", b"one"),
        file("a", b"two"),
        directory("d/", 0o755),
        link("d", EntryType::Symlink, "a"),
        directory("e/", 0o755),
        file("e/kept", b"kept"),
        directory("e/", 0o700),
    ]));
    report.unwrap();
    assert_eq!(fs::read(into.join("a")).unwrap(), b"two");
    assert!(fs::symlink_metadata(into.join("d")).unwrap().is_symlink());
    assert_eq!(fs::read(into.join("e/kept")).unwrap(), b"kept");
    let mode = fs::metadata(into.join("e")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn damage_is_noticed() {
    let whole = archive(&[file("a", b"one"), file("b", b"two")]);
    for cut in [100, 512, 600, 1024, 1536, 2000] {
        let (_directory, _, report) = unpacked(&whole[..cut]);
        assert!(report.is_err(), "cut at {cut}");
    }
    let mut flipped = whole.clone();
    flipped[3] ^= 1;
    assert!(matches!(
        unpacked(&flipped).2,
        Err(UnpackError::Archive { .. })
    ));
    let strange = archive(&[item("x", EntryType::new(b'Z'))]);
    assert!(matches!(
        unpacked(&strange).2,
        Err(UnpackError::Kind { kind: 'Z', .. })
    ));
}

#[test]
fn extended_attributes_and_long_names_come_from_pax_headers() {
    let mut builder = Builder::new(Vec::new());
    builder
        .append_pax_extensions([("SCHILY.xattr.user.colour", b"blue".as_slice())])
        .unwrap();
    let mut header = Header::new_ustar();
    header.set_size(1);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    let long = "n".repeat(200);
    builder
        .append_data(&mut header, "coloured", b"x".as_slice())
        .unwrap();
    builder
        .append_data(&mut header, &long, b"y".as_slice())
        .unwrap();
    let (_directory, into, report) = unpacked(&builder.into_inner().unwrap());
    let report = report.unwrap();
    assert_eq!(fs::read(into.join(&long)).unwrap(), b"y");
    let mut value = [0; 16];
    let read = sys::getxattr(into.join("coloured"), "user.colour", &mut value);
    // tmpfs before 6.6 has no user attributes.
    if report.attributes_left_out == 0 {
        assert_eq!(&value[..read.unwrap()], b"blue");
    } else {
        assert!(read.is_err());
    }
}
