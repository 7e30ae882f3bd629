//! A tiny report with everything that a report can have, for goldens.

use super::*;
use crate::doctor::Kvm;

/// The same in every call.
pub(in crate::bench) fn example() -> Report {
    Report {
        version: VERSION,
        created: 1_700_000_000,
        command: ["start", "--template", "t"].map(Into::into).to_vec(),
        host: HostDescription {
            cpu: "A CPU <&> more".into(),
            logical_cpus: 2,
            memory_kib: 6 * 1024 * 1024,
            kernel: "6.12.1 #1 SMP".into(),
            kvm: Kvm::Native,
            kvm_loop_ns: Some(9.5),
            huge_pages: None,
        },
        inputs: vec![
            Input {
                name: "kernel".into(),
                digest: "sha256-01".into(),
                version: None,
            },
            Input {
                name: "firecracker".into(),
                digest: "sha256-02".into(),
                version: Some("Firecracker v1".into()),
            },
        ],
        guest: Guest {
            memory_mib: 128,
            vcpus: 1,
            scratch_mib: 64,
        },
        systems: vec![
            SystemReport {
                name: "rundlet".into(),
                kind: Kind::Restore,
                notes: vec!["clones".into()],
                unusable: None,
                start: vec![
                    start(0, 1, &[10.0, 11.0, 12.0, 14.0], Some(9.5)),
                    start(0, 4, &[20.0, 22.0, 26.0, 40.0], Some(8.25)),
                    start(100, 4, &[21.0, 23.0, 27.0, 41.0], Some(8.5)),
                ],
                density: Some(Density {
                    rows: vec![density(50, 900.0, 11.0), density(100, 850.5, 12.0)],
                    stopped: None,
                }),
            },
            SystemReport {
                name: "firecracker".into(),
                kind: Kind::Restore,
                notes: Vec::new(),
                unusable: None,
                start: vec![
                    start(0, 1, &[100.0, 110.0, 120.0, 140.0], Some(95.0)),
                    StartRow {
                        failed: 2,
                        failure: Some("it said <no>".into()),
                        batch_ms: None,
                        ..start(0, 4, &[200.0, 220.0], None)
                    },
                ],
                density: Some(Density {
                    rows: vec![density(50, 1050.0, 130.0)],
                    stopped: Some("the host has no memory left".into()),
                }),
            },
            SystemReport {
                name: "qemu".into(),
                kind: Kind::Cold,
                notes: Vec::new(),
                unusable: Some("it is not in PATH".into()),
                start: Vec::new(),
                density: None,
            },
        ],
        notes: Vec::new(),
    }
}

fn start(deployed: usize, at_once: usize, starts_ms: &[f64], cpu: Option<f64>) -> StartRow {
    let summary = Summary::of(starts_ms);
    StartRow {
        deployed,
        at_once,
        rounds: starts_ms.len() / at_once.min(starts_ms.len()),
        ready: starts_ms.len(),
        failed: 0,
        failure: None,
        stopped: None,
        batch_ms: summary,
        start_ms: summary,
        starts_ms: starts_ms.to_vec(),
        host_cpu_ms: cpu,
        process_cpu_ms: cpu.map(|cpu| cpu / 2.0),
        steps: [("fork", 0.25), ("load", 0.5), ("agent", 0.25)]
            .map(|(name, part)| StepMean {
                name: name.into(),
                mean_ms: rounded(summary.map_or(0.0, |it| it.mean) * part),
            })
            .to_vec(),
    }
}

fn density(deployed: usize, pss_kib: f64, start_ms: f64) -> DensityRow {
    DensityRow {
        deployed,
        pss_kib,
        uss_kib: pss_kib - 100.0,
        backend_pss_kib: 50.0,
        backend_uss_kib: 40.0,
        helper_pss_kib: 10.0,
        helper_uss_kib: 8.0,
        available_drop_kib: pss_kib + 400.0,
        page_tables_kib: 100.0,
        secondary_page_tables_kib: 50.0,
        slab_kib: 220.0,
        wakeups_per_s: 0.05,
        backend_wakeups_per_s: 0.0,
        idle_cpu_ms_per_s: 0.125,
        quiet_s: 10.0,
        start_ms: Summary::of(&[start_ms]),
        host_cpu_ms: Some(start_ms / 2.0),
    }
}
