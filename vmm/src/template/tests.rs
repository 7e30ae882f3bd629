use std::collections::BTreeMap;
use std::fs;

use serde_json::json;
use vm_memory::{Bytes, GuestAddress};

use super::format::tests::sample_state;
use super::pages::PageWriter;
use super::*;
use crate::spec::ConsoleSink;
use crate::wire;

const PAGE: usize = 4096;

/// Puts one page with this value into an empty file of so many bytes.
fn write_pages(path: &Path, len: u64, page: usize, value: u8) -> Pages {
    let file = File::create(path).unwrap();
    let mut writer = PageWriter::new(&file);
    writer.write(&vec![0; page * PAGE]).unwrap();
    writer.write(&[value; PAGE]).unwrap();
    let rest = usize::try_from(len).unwrap() - (page + 1) * PAGE;
    writer.write(&vec![0; rest]).unwrap();
    writer.finish().unwrap()
}

/// The made-up template of the golden file, but of this host. None where there is no KVM.
fn template(test: &str) -> Option<(tempfile::TempDir, Header)> {
    let Ok(hypervisor) = Hypervisor::open() else {
        eprintln!("skipped: {test}: this machine has no /dev/kvm");
        return None;
    };
    let directory = tempfile::tempdir().unwrap();
    let state = sample_state();
    let (memory, window) = state::file_lengths(&state.memory.into());
    let header = Header {
        host: Host::here(&hypervisor).unwrap(),
        // 16 MiB above the 8 MiB below the window and the MiB of the window itself.
        memory: write_pages(&directory.path().join(MEMORY), memory, 6 << 10, 7),
        window: write_pages(&directory.path().join(WINDOW), window, 3, 9),
    };
    let bytes = format::encode(&header, &state).unwrap();
    fs::write(directory.path().join(STATE), bytes).unwrap();
    Some((directory, header))
}

fn clone_spec(disks: &[&str], vsock: bool, console: bool) -> CloneSpec {
    let disk = |id: &&str| json!({"id": id, "socket": format!("/{id}.sock")});
    let mut spec = json!({"binding": {}, "disks": disks.iter().map(disk).collect::<Vec<_>>()});
    if vsock {
        spec["vsock"] = json!({"socket": "/v.sock"});
    }
    if console {
        spec["console"] = json!({"path": "/log"});
    }
    let wire = wire::CloneSpec::parse(spec.to_string().as_bytes()).unwrap();
    wire.try_into().unwrap()
}

#[test]
fn every_clone_has_the_templates_memory_for_itself() {
    let Some((directory, _)) = template("every_clone_has_the_templates_memory_for_itself") else {
        return;
    };
    let template = Template::open(directory.path()).unwrap();
    let rams = [template.ram().unwrap(), template.ram().unwrap()];
    let (private, window) = (GuestAddress(25 << 20), GuestAddress((8 << 20) + 3 * 4096));
    for (ram, value) in rams.iter().zip(1_u8..) {
        let memory = ram.memory();
        assert_eq!(memory.read_obj::<u8>(private).unwrap(), 7);
        assert_eq!(memory.read_obj::<u8>(window).unwrap(), 9);
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0)).unwrap(), 0);
        memory.write_obj(value, private).unwrap();
        memory.write_obj(value, window).unwrap();
    }
    for (ram, value) in rams.iter().zip(1_u8..) {
        assert_eq!(ram.memory().read_obj::<u8>(private).unwrap(), value);
        assert_eq!(ram.memory().read_obj::<u8>(window).unwrap(), value);
    }
    Template::open(directory.path()).unwrap();
}

#[test]
fn a_binding_is_compared_label_by_label() {
    let Some((directory, _)) = template("a_binding_is_compared_label_by_label") else {
        return;
    };
    let template = Template::open(directory.path()).unwrap();
    let check = |labels: &[(&str, &str)]| {
        let labels = labels
            .iter()
            .map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
        let labels: BTreeMap<_, _> = labels.collect();
        let checked = template.check_binding(&labels.try_into().unwrap());
        checked.map_err(|error| error.to_string())
    };
    assert_eq!(check(&[("image", "bb"), ("kernel", "aa")]), Ok(()));
    let ends = |labels: &[(&str, &str)], end: &str| {
        let error = check(labels).unwrap_err();
        assert!(error.ends_with(end), "{error}");
    };
    ends(
        &[("image", "cc"), ("kernel", "aa")],
        r#"its image is "bb", asked for is "cc""#,
    );
    ends(
        &[("image", "bb")],
        r#"its kernel is "aa", asked for is nothing"#,
    );
    ends(
        &[("image", "bb"), ("initrd", "x"), ("kernel", "aa")],
        r#"its initrd is nothing, asked for is "x""#,
    );
}

#[test]
fn a_clones_devices_are_the_templates_in_other_places() {
    let Some((directory, _)) = template("a_clones_devices_are_the_templates") else {
        return;
    };
    let template = Template::open(directory.path()).unwrap();
    let devices = template
        .devices(&clone_spec(&["root"], true, false))
        .unwrap();
    let disk = &devices.disks[0];
    assert_eq!(disk.socket, Path::new("/root.sock"));
    assert_eq!(
        (disk.read_only, disk.queues, disk.queue_size),
        (true, 1, 128)
    );
    assert_eq!(devices.vsock.unwrap().cid, 3);
    assert_eq!(devices.console.unwrap().sink, ConsoleSink::Nowhere);
    let console = template
        .devices(&clone_spec(&["root"], true, true))
        .unwrap()
        .console;
    assert_eq!(console.unwrap().sink, ConsoleSink::Path("/log".into()));
    for (spec, field) in [
        (clone_spec(&[], true, true), "disks: "),
        (clone_spec(&["other"], true, true), "disks: "),
        (clone_spec(&["root", "more"], true, true), "disks: "),
        (clone_spec(&["root"], false, true), "vsock: "),
    ] {
        let error = template.devices(&spec).unwrap_err().to_string();
        assert!(error.starts_with(field), "{error}");
    }
}

#[test]
fn a_draft_that_is_not_finished_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let draft = capture::Draft::create(directory.path()).unwrap();
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    let second = capture::Draft::create(directory.path());
    assert!(second.unwrap_err().to_string().contains("state"));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
    drop(draft);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    // One name is taken: the others do not stay.
    fs::write(directory.path().join(WINDOW), "theirs").unwrap();
    assert!(capture::Draft::create(directory.path()).is_err());
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}
