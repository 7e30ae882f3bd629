use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::fake::{Fake, wait_for};
use super::{CgroupPool, PoolError, PoolStats, keeper};
use crate::host::model::Limits;

const LONG: Duration = Duration::from_secs(30);

fn small() -> Limits {
    Limits {
        cpu_millis: Some(1500),
        memory_mib: Some(300),
        pids: Some(64),
        io: vec!["8:0 rbps=1000".into()],
    }
}

fn stats(pool: &CgroupPool) -> [usize; 5] {
    let PoolStats {
        slots,
        free,
        claimed,
        releasing,
        set_aside,
    } = pool.stats();
    assert_eq!(slots, free + claimed + releasing + set_aside);
    [slots, free, claimed, releasing, set_aside]
}

#[test]
fn opening_enables_controllers_and_makes_what_is_missing() {
    let fake = Fake::with_slots(1);
    let pool = fake.open(&fake.config(3)).unwrap();
    assert_eq!(stats(&pool), [3, 3, 0, 0, 0]);
    assert!(fake.slot(2).is_dir() && !fake.slot(3).exists());
    for inner in fake.inner() {
        let enabled = fs::read_to_string(inner.join("cgroup.subtree_control")).unwrap();
        assert_eq!(enabled, "+cpu +memory +pids +io");
    }
}

#[test]
fn controllers_that_are_on_are_left_alone_and_missing_ones_are_named() {
    let fake = Fake::with_slots(0);
    let control = fake.root().join("cgroup.subtree_control");
    fs::write(&control, "cpuset cpu io memory pids\n").unwrap();
    drop(fake.open(&fake.config(1)).unwrap());
    assert_eq!(
        fs::read_to_string(&control).unwrap(),
        "cpuset cpu io memory pids\n"
    );
    fs::write(fake.root().join("cgroup.controllers"), "cpu io pids\n").unwrap();
    let error = fake.open(&fake.config(1)).unwrap_err().to_string();
    assert!(error.contains("the controller memory"), "{error}");
    assert!(error.contains("Delegate=memory"), "{error}");
}

#[test]
fn a_second_pool_in_the_same_place_is_refused() {
    let fake = Fake::with_slots(1);
    let pool = fake.open(&fake.config(1)).unwrap();
    let error = fake.open(&fake.config(1)).unwrap_err();
    assert!(matches!(error, PoolError::InUse(_)), "{error}");
    drop(pool);
    wait_for("the lock", || fake.open(&fake.config(1)).is_ok());
}

#[test]
fn a_claim_writes_the_limits_that_the_slot_does_not_have() {
    let fake = Fake::with_slots(1);
    let pool = fake.open(&fake.config(1)).unwrap();
    let slot = pool.claim(&small()).unwrap();
    assert_eq!(slot.name(), "slot-0000");
    assert_eq!(slot.path().to_str(), Some("some.slice/pool/slot-0000"));
    assert_eq!(stats(&pool), [1, 0, 1, 0, 0]);
    for (file, text) in [
        ("cpu.max", "150000 100000"),
        ("memory.max", "314572800"),
        ("pids.max", "64"),
        ("io.max", "8:0 rbps=1000"),
    ] {
        assert_eq!(fake.read(0, file), text);
    }
    drop(slot);
    assert!(pool.settle(LONG));
    assert_eq!(stats(&pool), [1, 1, 0, 0, 0]);
    for (file, text) in [
        ("cpu.max", "max 100000"),
        ("memory.max", "max"),
        ("pids.max", "max"),
        ("io.max", "8:0 rbps=max wbps=max riops=max wiops=max"),
    ] {
        assert_eq!(fake.read(0, file), text);
    }
}

#[test]
fn a_claim_of_what_a_slot_rests_at_writes_nothing() {
    let fake = Fake::with_slots(1);
    let pool = fake.open_resting(&fake.config(1), &small()).unwrap();
    assert_eq!(fake.read(0, "pids.max"), "64");
    for round in 0..2 {
        fake.write(0, "pids.max", "untouched");
        drop(pool.claim(&small()).unwrap());
        assert!(pool.settle(LONG));
        assert_eq!(fake.read(0, "pids.max"), "untouched", "round {round}");
    }
}

#[test]
fn a_limit_that_the_kernel_refuses_costs_no_slot() {
    let fake = Fake::with_slots(1);
    let pool = fake.open(&fake.config(1)).unwrap();
    fs::remove_file(fake.slot(0).join("pids.max")).unwrap();
    let error = pool.claim(&small()).unwrap_err();
    assert!(
        matches!(&error, PoolError::Limit { file: "pids.max", value, .. } if value == "64"),
        "{error}"
    );
    assert_eq!(stats(&pool), [1, 1, 0, 0, 0]);
    fake.write(0, "pids.max", "");
    // Nothing is known of the slot now: all of it is written.
    fake.write(0, "cpu.max", "");
    let slot = pool.claim(&Limits::default()).unwrap();
    assert_eq!(fake.read(0, "cpu.max"), "max 100000");
    drop(slot);
}

#[test]
fn an_empty_pool_says_so_at_once_or_after_the_configured_wait() {
    let fake = Fake::with_slots(2);
    let pool = fake.open(&fake.config(2)).unwrap();
    let none = Limits::default();
    let held = [pool.claim(&none).unwrap(), pool.claim(&none).unwrap()];
    let error = pool.claim(&none).unwrap_err();
    assert!(
        matches!(error, PoolError::Exhausted { slots: 2 }),
        "{error}"
    );
    assert!(error.to_string().contains("raise cgroup.slots"), "{error}");
    drop((held, pool));

    let mut config = fake.config(2);
    config.wait_ms = 20_000;
    let mut opened = None;
    wait_for("the lock", || {
        opened = fake.open(&config).ok();
        opened.is_some()
    });
    let pool = opened.unwrap();
    let held = [pool.claim(&none).unwrap(), pool.claim(&none).unwrap()];
    let waiting = {
        let pool = pool.clone();
        thread::spawn(move || {
            pool.claim(&Limits::default())
                .map(|slot| slot.name().to_owned())
        })
    };
    thread::sleep(Duration::from_millis(20));
    let [first, _second] = held;
    let name = first.name().to_owned();
    drop(first);
    assert_eq!(waiting.join().unwrap().unwrap(), name);
}

#[test]
fn what_is_in_a_slot_is_killed_and_the_slot_comes_back_when_it_is_empty() {
    let fake = Fake::with_slots(1);
    let pool = fake.open(&fake.config(1)).unwrap();
    let slot = pool.claim(&Limits::default()).unwrap();
    fake.populate(0, true);
    fake.write(0, "memory.current", "5000000\n");
    fake.write(0, "cpu.stat", "usage_usec 777\n");
    assert_eq!(slot.memory_current().unwrap(), 5_000_000);
    assert_eq!(slot.cpu_usage_us().unwrap(), 777);
    drop(slot);
    assert_eq!(stats(&pool), [1, 0, 0, 1, 0]);
    fake.expect_kill(0);
    fake.populate(0, false);
    assert!(pool.settle(LONG));
    assert_eq!(stats(&pool), [1, 1, 0, 0, 0]);
    assert_eq!(fake.read(0, "memory.reclaim"), "5000000");
    let next = pool.claim(&Limits::default()).unwrap();
    fake.write(0, "cpu.stat", "usage_usec 1000\n");
    assert_eq!(next.cpu_usage_us().unwrap(), 223);
}

#[test]
fn a_slot_that_stays_full_is_set_aside_and_comes_back_when_it_can() {
    let fake = Fake::with_slots(2);
    let pool = fake.open(&fake.config(2)).unwrap();
    let (sender, told) = mpsc::channel();
    pool.on_set_aside(move |slot, why| {
        sender.send((slot.to_owned(), why.to_owned())).unwrap();
    });
    let slot = pool.claim(&Limits::default()).unwrap();
    fake.populate(0, true);
    fake.write(0, "cgroup.procs", &format!("{}\n", std::process::id()));
    drop(slot);
    let (name, why) = told.recv_timeout(LONG).unwrap();
    assert_eq!(name, "slot-0000");
    assert!(why.starts_with("1 processes were still in it"), "{why}");
    assert!(why.contains("state "), "{why}");
    assert_eq!(stats(&pool), [2, 1, 0, 0, 1]);
    fake.populate(0, false);
    // Without a hint from the kernel it takes a slow tick.
    wait_for("the slot", || stats(&pool) == [2, 2, 0, 0, 0]);
}

#[test]
fn after_a_restart_slots_in_use_are_adopted_or_emptied() {
    let fake = Fake::with_slots(4);
    for index in [1, 3] {
        fake.populate(index, true);
    }
    // Limits of the former daemon.
    fake.write(0, "memory.max", "1234");
    let pool = fake.open(&fake.config(4)).unwrap();
    assert_eq!(fake.read(0, "memory.max"), "max");
    assert_eq!(stats(&pool), [4, 2, 2, 0, 0]);
    let living = pool.adopt("slot-0001").unwrap();
    // Its VMM has ended meanwhile.
    let dead = pool.adopt("slot-0002").unwrap();
    for name in ["slot-0001", "slot-0002", "slot-0009", "helpers"] {
        let error = pool.adopt(name).unwrap_err();
        assert!(matches!(error, PoolError::NotToAdopt(_)), "{name}: {error}");
    }
    assert_eq!(stats(&pool), [4, 1, 3, 0, 0]);
    pool.finish_recovery();
    fake.expect_kill(3);
    fake.populate(3, false);
    assert!(pool.settle(LONG));
    assert_eq!(stats(&pool), [4, 2, 2, 0, 0]);
    assert_eq!(fake.read(1, "cgroup.kill"), "");
    drop((living, dead));
    fake.expect_kill(1);
}

#[test]
fn a_smaller_pool_removes_what_is_too_many_once_it_is_empty() {
    let fake = Fake::with_slots(4);
    // The kernel removes a cgroup's directory with its files.
    for index in [2, 3] {
        fs::remove_dir_all(fake.slot(index)).unwrap();
        fs::create_dir(fake.slot(index)).unwrap();
        fake.write(index, "cgroup.events", "populated 0\n");
    }
    fake.populate(3, true);
    let pool = fake.open(&fake.config(2)).unwrap();
    assert_eq!(stats(&pool), [3, 2, 1, 0, 0]);
    let surplus = pool.adopt("slot-0003").unwrap();
    fake.populate(3, false);
    drop(surplus);
    assert!(pool.settle(LONG));
    assert_eq!(stats(&pool), [2, 2, 0, 0, 0]);
}

#[test]
fn a_slot_that_is_left_is_not_emptied() {
    let fake = Fake::with_slots(1);
    let pool = fake.open(&fake.config(1)).unwrap();
    let slot = pool.claim(&Limits::default()).unwrap();
    fake.populate(0, true);
    slot.leave();
    assert!(pool.settle(LONG));
    assert_eq!(stats(&pool), [1, 0, 1, 0, 0]);
    assert_eq!(fake.read(0, "cgroup.kill"), "");
}

#[test]
fn a_slot_outlives_the_handles_of_its_pool_and_is_still_emptied() {
    let fake = Fake::with_slots(1);
    let pool = fake.open(&fake.config(1)).unwrap();
    let slot = pool.claim(&Limits::default()).unwrap();
    fake.populate(0, true);
    drop(pool);
    drop(slot);
    fake.expect_kill(0);
    fake.populate(0, false);
}

#[test]
fn helpers_and_the_keeper_have_leaves_of_their_own() {
    let fake = Fake::with_slots(0);
    assert_eq!(keeper::prepare(&fake.tree(), 2).unwrap(), 2);
    let keeper = fs::read_to_string(fake.root().join("keeper/cgroup.procs")).unwrap();
    assert_eq!(keeper, std::process::id().to_string());
    assert!(fake.slot(1).is_dir());
    fs::remove_dir(fake.slot(0)).unwrap();
    fs::remove_dir(fake.slot(1)).unwrap();
    let pool = fake.open(&fake.config(1)).unwrap();
    pool.join_helpers(4711).unwrap();
    let helpers = fs::read_to_string(fake.root().join("helpers/cgroup.procs")).unwrap();
    assert_eq!(helpers, "4711");
}

#[test]
fn a_thousand_claims_from_many_threads_never_share_a_slot() {
    let fake = Fake::with_slots(0);
    let mut config = fake.config(8);
    config.wait_ms = 20_000;
    // Without the kernel a new cgroup is an empty directory.
    for index in 0..8 {
        fs::create_dir(fake.slot(index)).unwrap();
        fake.write(index, "cgroup.events", "populated 0\n");
        for file in ["cpu.max", "memory.max", "pids.max"] {
            fake.write(index, file, "");
        }
    }
    let pool = fake.open(&config).unwrap();
    thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..64 {
                    let slot = pool.claim(&Limits::default()).unwrap();
                    let mark = fake.root().join(slot.name()).join("mine");
                    fs::create_dir(&mark).unwrap();
                    fs::remove_dir(&mark).unwrap();
                }
            });
        }
    });
    assert!(pool.settle(LONG));
    assert_eq!(stats(&pool), [8, 8, 0, 0, 0]);
}
