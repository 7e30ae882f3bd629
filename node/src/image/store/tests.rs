use super::*;

fn reference(name: &str, digest: &str) -> Reference {
    Reference {
        name: name.parse().unwrap(),
        digest: format!("sha256-{digest}"),
        bytes: 3,
        created: 1,
        source: "/somewhere".into(),
    }
}

fn add(store: &Store, name: &str, digest: &str) {
    let work = store.work("test").unwrap();
    let staged = work.path().join("image");
    fs::write(&staged, digest).unwrap();
    store.publish(&staged, &reference(name, digest)).unwrap();
}

fn images(store: &Store) -> usize {
    fs::read_dir(store.root().join("images")).unwrap().count()
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("deep/store")).unwrap();
    (directory, store)
}

#[test]
fn what_is_published_is_found_listed_and_removed() {
    let (_directory, store) = store();
    add(&store, "b/two:1", "bbb");
    add(&store, "one", "aaa");
    let image = store.find(&"one".parse().unwrap()).unwrap();
    assert_eq!(fs::read_to_string(&image.path).unwrap(), "aaa");
    assert_eq!(image.digest, "sha256-aaa");
    drop(image);
    let names: Vec<String> = store
        .list()
        .unwrap()
        .iter()
        .map(|it| it.name.to_string())
        .collect();
    assert_eq!(names, ["b/two:1", "one:latest"]);
    store.remove(&"one".parse().unwrap()).unwrap();
    assert_eq!(images(&store), 1);
    let error = store.find(&"one".parse().unwrap()).unwrap_err();
    assert!(matches!(error, StoreError::NoSuchImage(_)));
    let error = store.remove(&"one".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("image import"), "{error}");
}

#[test]
fn an_image_in_use_is_not_removed_and_the_user_is_named() {
    let (_directory, store) = store();
    add(&store, "one", "aaa");
    let image = store.find(&"one".parse().unwrap()).unwrap();
    let error = store.remove(&"one".parse().unwrap()).unwrap_err();
    let StoreError::InUse { pids, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(pids, [std::process::id()]);
    assert!(image.path.exists());
    drop(image);
    store.remove(&"one".parse().unwrap()).unwrap();
    assert_eq!(images(&store), 0);
}

#[test]
fn one_image_may_have_two_names() {
    let (_directory, store) = store();
    add(&store, "one", "aaa");
    add(&store, "two", "aaa");
    assert_eq!(images(&store), 1);
    let _used = store.find(&"two".parse().unwrap()).unwrap();
    store.remove(&"one".parse().unwrap()).unwrap();
    assert_eq!(images(&store), 1);
    assert!(store.remove(&"two".parse().unwrap()).is_err());
}

#[test]
fn a_name_moves_and_the_old_image_goes_when_nobody_uses_it() {
    let (_directory, store) = store();
    add(&store, "one", "aaa");
    let old = store.find(&"one".parse().unwrap()).unwrap();
    add(&store, "one", "bbb");
    assert!(old.path.exists());
    assert_eq!(images(&store), 2);
    // As a daemon that was restarted finds it again, which then keeps it.
    let again = store.find_digest(&"one".parse().unwrap(), "sha256-aaa");
    assert_eq!(again.unwrap().path, old.path);
    drop(old);
    add(&store, "two", "ccc");
    assert_eq!(images(&store), 2);
    let new = store.find(&"one".parse().unwrap()).unwrap();
    assert_eq!(fs::read_to_string(&new.path).unwrap(), "bbb");
}

#[test]
fn leftovers_of_a_crash_are_swept_by_the_next_change() {
    let (_directory, store) = store();
    add(&store, "one", "aaa");
    // After the image's rename, before the name's; in the middle of the name; in the middle of the image.
    fs::write(store.root().join("images/sha256-zzz.erofs"), "z").unwrap();
    fs::write(store.root().join("names/new"), "{\"na").unwrap();
    fs::create_dir(store.root().join("tmp/import-dead")).unwrap();
    assert_eq!(store.list().unwrap().len(), 1);
    add(&store, "two", "bbb");
    assert_eq!(images(&store), 2);
    assert_eq!(store.list().unwrap().len(), 2);
    let left = fs::read_dir(store.root().join("tmp")).unwrap().count();
    assert_eq!(left, 0);
}

#[test]
fn a_damaged_name_is_told_from_a_missing_one() {
    let (_directory, store) = store();
    add(&store, "one", "aaa");
    fs::write(store.root().join("names/one:latest.json"), "{").unwrap();
    let error = store.find(&"one".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("one:latest.json"), "{error}");
}
