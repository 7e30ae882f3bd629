use std::io::Write;
use std::os::unix::fs::PermissionsExt;

use super::*;

/// A tar file with one program and one text in it.
fn tar_bytes() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, body) in [("bin/tool", "#!/bin/sh\n"), ("etc/motd", "hello\n")] {
        let mut header = tar::Header::new_gnu();
        header.set_size(body.len() as u64);
        header.set_mode(0o755);
        header.set_mtime(1_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        builder
            .append_data(&mut header, name, body.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

struct Fixture {
    directory: tempfile::TempDir,
    store: Store,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::open(&directory.path().join("store")).unwrap();
        Self { directory, store }
    }

    fn import_bytes(&self, bytes: &[u8], name: &str) -> Result<Imported, ImportError> {
        let path = self.directory.path().join("archive");
        fs::write(&path, bytes).unwrap();
        import(&self.store, &path, &name.parse().unwrap())
    }

    fn work_left(&self) -> usize {
        fs::read_dir(self.store.root().join("tmp")).unwrap().count()
    }
}

#[test]
fn plain_gzip_and_zstd_give_the_same_image() {
    let fixture = Fixture::new();
    let tar = tar_bytes();
    let plain = fixture.import_bytes(&tar, "plain").unwrap().reference;
    let gz = fixture.import_bytes(&gzip(&tar), "gz").unwrap().reference;
    let zstd = zstd::encode_all(tar.as_slice(), 1).unwrap();
    let zstd = fixture.import_bytes(&zstd, "zstd").unwrap().reference;
    assert_eq!((&plain.digest, &plain.digest), (&gz.digest, &zstd.digest));
    let image = fixture.store.find(&plain.name).unwrap();
    let bytes = fs::read(&image.path).unwrap();
    assert_eq!(plain.bytes, bytes.len() as u64);
    // EROFS_SUPER_MAGIC_V1 at offset 1024, little endian.
    assert_eq!(bytes[1024..1028], 0xe0f5_e1e2_u32.to_le_bytes());
    assert_eq!(
        fs::metadata(&image.path).unwrap().permissions().mode() & 0o222,
        0
    );
    assert_eq!(fixture.work_left(), 0);
}

#[test]
fn a_directory_is_imported() {
    let fixture = Fixture::new();
    let tree = fixture.directory.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), "x").unwrap();
    let imported = import(&fixture.store, &tree, &"dir:1".parse().unwrap()).unwrap();
    assert!(imported.reference.digest.starts_with("sha256-"));
    let inside = import(
        &fixture.store,
        fixture.directory.path(),
        &"x".parse().unwrap(),
    );
    assert!(matches!(inside, Err(ImportError::ContainsStore { .. })));
}

#[test]
fn what_is_no_archive_is_told_so() {
    let fixture = Fixture::new();
    for (bytes, words) in [
        (b"hello".to_vec(), "no tar file"),
        (Vec::new(), "no tar file"),
        (b"\xfd7zXZ\0rest".to_vec(), "xz"),
        (b"BZh9rest".to_vec(), "bzip2"),
        (gzip(b"not a tar"), "cannot be read"),
    ] {
        let error = fixture.import_bytes(&bytes, "x").unwrap_err();
        let text = crate::error::chain(&error);
        assert!(text.contains(words), "{text}");
    }
    let missing = import(
        &fixture.store,
        Path::new("/nonexistent"),
        &"x".parse().unwrap(),
    );
    assert!(matches!(missing, Err(ImportError::Path(_))));
    assert_eq!(fixture.store.list().unwrap(), []);
}

#[test]
fn a_damaged_or_cut_off_archive_leaves_nothing() {
    let fixture = Fixture::new();
    let tar = tar_bytes();
    let compressed = gzip(&tar);
    let mut flipped = compressed.clone();
    let checksum = flipped.len() - 6;
    flipped[checksum] ^= 1;
    for bytes in [&tar[..1536], &compressed[..compressed.len() - 4], &flipped] {
        let error = fixture.import_bytes(bytes, "x").unwrap_err();
        assert!(matches!(error, ImportError::Unpack { .. }), "{error}");
    }
    assert_eq!(fixture.store.list().unwrap(), []);
    assert_eq!(fixture.work_left(), 0);
    assert_eq!(
        fs::read_dir(fixture.store.root().join("images"))
            .unwrap()
            .count(),
        0
    );
}
