use super::*;
use crate::image::Reference;
use crate::template::{Binding, Recipe};

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("store")).unwrap();
    let work = store.work("test").unwrap();
    let staged = work.path().join("image");
    fs::write(&staged, "an image").unwrap();
    let reference = Reference {
        name: "img".parse().unwrap(),
        digest: "sha256-aaa".into(),
        bytes: 3,
        created: 1,
        source: "/somewhere".into(),
    };
    store.publish(&staged, &reference).unwrap();
    (directory, store)
}

fn record(name: &str, id: &str) -> Record {
    Record {
        name: name.parse().unwrap(),
        id: id.into(),
        recipe: Recipe {
            image: "img".parse().unwrap(),
            memory_mib: 128,
            vcpus: 1,
            scratch_mib: 64,
            kernel: None,
            initrd: None,
            warm_up: None,
            boot_timeout_s: 60,
        },
        binding: Binding {
            kernel: "sha256-k".into(),
            initrd: "sha256-i".into(),
            image: "sha256-aaa".into(),
        },
        vmm: "sha256-v".into(),
        created: 7,
    }
}

/// Writes a template whose memory says which build it is, but for the files in `without`.
fn stage(directory: &Path, record: &Record, without: &[&str]) {
    fs::create_dir(directory).unwrap();
    for name in FILES {
        if name == "template.json" {
            record.write(directory).unwrap();
        } else if !without.contains(&name) {
            fs::write(directory.join(name), &record.id).unwrap();
        }
    }
}

fn add(templates: &Templates, name: &str, id: &str) {
    let work = templates.work().unwrap();
    let staged = work.path().join("template");
    let record = record(name, id);
    stage(&staged, &record, &[]);
    templates.publish(&staged, &record).unwrap();
}

fn builds(store: &Store) -> usize {
    fs::read_dir(store.root().join("templates/builds"))
        .unwrap()
        .count()
}

fn name(name: &str) -> TemplateName {
    name.parse().unwrap()
}

#[test]
fn what_is_published_is_found_listed_inspected_and_removed() {
    let (_directory, store) = store();
    let templates = Templates::of(&store);
    add(&templates, "b/two:1", "id2");
    add(&templates, "one", "id1");
    let template = templates.find(&name("one")).unwrap();
    assert_eq!(template.record, record("one", "id1"));
    assert_eq!(
        fs::read_to_string(template.path.join("memory")).unwrap(),
        "id1"
    );
    assert_eq!(
        fs::read_to_string(&template.image.path).unwrap(),
        "an image"
    );
    let through_the_name = store.root().join("templates/one:latest/memory");
    assert_eq!(fs::read_to_string(through_the_name).unwrap(), "id1");
    drop(template);
    let names: Vec<String> = templates
        .list()
        .unwrap()
        .iter()
        .map(|it| it.record.name.to_string())
        .collect();
    assert_eq!(names, ["b/two:1", "one:latest"]);
    let inspection = templates.inspect(&name("one")).unwrap();
    assert_eq!(inspection.files.len(), 5);
    assert_eq!(inspection.files[1].bytes, 3);
    assert!(inspection.allocated_bytes > 0);
    let json = serde_json::to_value(&inspection).unwrap();
    assert_eq!(json["name"], "one:latest");
    assert_eq!(json["recipe"]["memory_mib"], 128);
    templates.remove(&name("one")).unwrap();
    assert_eq!(builds(&store), 1);
    for error in [
        templates.find(&name("one")).unwrap_err(),
        templates.remove(&name("one")).unwrap_err(),
        templates.inspect(&name("one")).unwrap_err(),
    ] {
        assert!(error.to_string().contains("template build"), "{error}");
    }
}

#[test]
fn a_template_in_use_is_not_removed_and_the_user_is_named() {
    let (_directory, store) = store();
    let templates = Templates::of(&store);
    add(&templates, "one", "id1");
    let template = templates.find(&name("one")).unwrap();
    let error = templates.remove(&name("one")).unwrap_err();
    let TemplateError::InUse { pids, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(pids, [std::process::id()]);
    assert_eq!(templates.inspect(&name("one")).unwrap().used_by, pids);
    assert!(template.path.join("memory").exists());
    templates.release(template);
    templates.remove(&name("one")).unwrap();
    assert_eq!(builds(&store), 0);
}

#[test]
fn a_rebuild_replaces_the_name_and_leaves_the_old_one_to_its_users() {
    let (_directory, store) = store();
    let templates = Templates::of(&store);
    add(&templates, "one", "id1");
    let old = templates.find(&name("one")).unwrap();
    add(&templates, "one", "id2");
    assert_eq!(builds(&store), 2);
    assert_eq!(fs::read_to_string(old.path.join("memory")).unwrap(), "id1");
    let new = templates.find(&name("one")).unwrap();
    assert_eq!(new.record.id, "id2");
    // As a daemon that was restarted finds it again, which then keeps it.
    let again = templates.find_build("id1").unwrap();
    assert_eq!(again.path, old.path);
    templates.release(old);
    assert_eq!(builds(&store), 2);
    templates.release(again);
    assert_eq!(builds(&store), 1);
    assert!(templates.find_build("id1").is_err());
    templates.release(new);
    assert_eq!(builds(&store), 1);
}

#[test]
fn half_a_template_is_none_and_is_swept() {
    let (_directory, store) = store();
    let templates = Templates::of(&store);
    add(&templates, "one", "id1");
    for missing in ["state", "memory", "window", "scratch.img"] {
        let work = templates.work().unwrap();
        let staged = work.path().join("template");
        let record = record("one", "id2");
        stage(&staged, &record, &[missing]);
        let error = templates.publish(&staged, &record).unwrap_err();
        assert!(error.to_string().contains(missing), "{error}");
    }
    assert_eq!(templates.find(&name("one")).unwrap().record.id, "id1");
    // Crashes: in the middle of a build, after its rename, in the middle of its name.
    let tmp = store.root().join("tmp/template-dead");
    fs::create_dir(&tmp).unwrap();
    stage(&tmp.join("template"), &record("one", "id3"), &["memory"]);
    let unnamed = store.root().join("templates/builds/id4");
    stage(&unnamed, &record("one", "id4"), &[]);
    symlink("builds/id5", store.root().join("templates/new")).unwrap();
    assert_eq!(templates.list().unwrap().len(), 1);
    add(&templates, "two", "id6");
    assert_eq!(builds(&store), 2);
    assert_eq!(fs::read_dir(store.root().join("tmp")).unwrap().count(), 0);
    assert_eq!(templates.list().unwrap().len(), 2);
}

#[test]
fn a_template_keeps_its_image() {
    let (_directory, store) = store();
    let templates = Templates::of(&store);
    add(&templates, "one", "id1");
    add(&templates, "two", "id2");
    let image = "img".parse().unwrap();
    let error = store.remove(&image).unwrap_err().to_string();
    assert!(error.contains("one:latest, two:latest"), "{error}");
    // The name moves to another image; the template still has its own.
    let work = store.work("test").unwrap();
    let staged = work.path().join("image");
    fs::write(&staged, "another").unwrap();
    let reference = Reference {
        name: image.clone(),
        digest: "sha256-bbb".into(),
        bytes: 3,
        created: 1,
        source: "/somewhere".into(),
    };
    store.publish(&staged, &reference).unwrap();
    let template = templates.find(&name("one")).unwrap();
    assert_eq!(
        fs::read_to_string(&template.image.path).unwrap(),
        "an image"
    );
    drop(template);
    store.remove(&image).unwrap();
    templates.remove(&name("one")).unwrap();
    templates.find(&name("two")).unwrap();
    templates.remove(&name("two")).unwrap();
    store.publish(&staged_again(&store), &reference).unwrap();
    assert_eq!(
        fs::read_dir(store.root().join("images")).unwrap().count(),
        1
    );
}

fn staged_again(store: &Store) -> PathBuf {
    let staged = store.root().join("tmp/staged");
    fs::write(&staged, "another").unwrap();
    staged
}

#[test]
fn a_damaged_record_names_the_template_and_how_to_be_rid_of_it() {
    let (_directory, store) = store();
    let templates = Templates::of(&store);
    add(&templates, "one", "id1");
    let path = store.root().join("templates/builds/id1/template.json");
    fs::write(&path, "{\"name\": 1").unwrap();
    let error = templates.find(&name("one")).unwrap_err().to_string();
    assert!(error.contains("template rm one:latest"), "{error}");
    assert_eq!(templates.list().unwrap().len(), 0);
    templates.remove(&name("one")).unwrap();
    assert_eq!(builds(&store), 0);
}
