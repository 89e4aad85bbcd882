use super::*;
use crate::machine::tests::file_tree::FileTree;

#[test]
fn a_gpu_is_parsed_and_values_that_are_not_numbers_are_absent() {
    let (index, whole) = parse_gpu(
        "0, GPU-2ac434d3-1aca-57a0-597d-1d2effdba9f3, 570.124.06, 37, 54, 36537, 81920, 44793, 87.31, NVIDIA H100 80GB HBM3\n",
    )
    .unwrap();
    assert_eq!((index, whole.index.as_str()), (0, "0"));
    assert_eq!(whole.utilization, Some(37.0));
    assert_eq!(whole.memory_total.vram, Some(81920.0 * MIB));
    // The driver reserves some.
    assert_eq!(whole.memory_free.vram, Some(44793.0 * MIB));
    assert_eq!(whole.power, Some(87.31));
    assert_eq!(whole.name.as_deref(), Some("NVIDIA H100 80GB HBM3"));
    for nothing in [
        "[N/A]",
        "N/A",
        "[Not Supported]",
        "[Unknown Error]",
        "[GPU is lost]",
        "",
        "37 %",
        "3,7",
    ] {
        let line = format!("1, GPU-x, 1, {nothing}, 54, 1, 2, 3, {nothing}, A");
        if let Some((_, gpu)) = parse_gpu(&line) {
            assert_eq!(gpu.utilization, None, "{nothing}");
        }
    }
    let (_, comma) = parse_gpu("0, a, b, 1, 1, 2, 3, 1, 4, Graphics Device, 8GB").unwrap();
    assert_eq!(comma.name.as_deref(), Some("Graphics Device, 8GB"));
    // Drivers sometimes report a percentage above 100.
    let (_, odd) = parse_gpu("0, a, b, 4294967295, 1, 2, 3, 1, 4, c").unwrap();
    assert_eq!(odd.utilization, None);
    for line in [
        "",
        "No devices were found",
        "Unable to determine the device handle for GPU0000:41:00.0: Unknown Error",
        "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.",
        "Nicht verfügbar, x, x, x, x, x, x, x, x, x",
    ] {
        assert_eq!(parse_gpu(line), None, "{line}");
    }
}

#[test]
fn a_process_is_parsed_with_its_gpu() {
    let line = "3095759, GPU-2ac434d3, 10998\n";
    let expected = (3095759, "GPU-2ac434d3".to_owned(), 10998.0 * MIB);
    assert_eq!(parse_process(line), Some(expected));
    for line in [
        "3095759, GPU-2ac434d3, [N/A]",
        "3095759, GPU-2ac434d3, [Insufficient Permissions]",
        "[Not Supported], GPU-x, 1",
        "No running processes found",
    ] {
        assert_eq!(parse_process(line), None, "{line}");
    }
}

/// Each line is the mean power of the second before it on recent GPUs.
#[test]
fn the_power_of_a_line_counts_for_the_time_since_the_line_before() {
    let mut readings = NvidiaReadings::default();
    let start = Instant::now();
    let mut energy_at = |second: u64, watts: &str| {
        let line = format!("0, GPU-a, 1, 5, 6, 7, 8, 1, {watts}, A");
        let fresh_for = Duration::from_secs(17);
        readings.take_gpu(&line, start + Duration::from_secs(second), fresh_for);
        readings.gpus[&0].0.energy
    };
    assert_eq!(energy_at(0, "80.5"), Some(0.0));
    assert_eq!(energy_at(5, "300"), Some(1500.0));
    assert_eq!(energy_at(10, "[N/A]"), None);
    assert_eq!(energy_at(15, "100"), Some(1500.0));
    // It hung.
    assert_eq!(energy_at(40, "100"), Some(1500.0));
    assert_eq!(energy_at(45, "100"), Some(2000.0));
    let silent = |second: u64, fresh_for: u64| {
        let now = start + Duration::from_secs(second);
        readings.silent_since(now, Duration::from_secs(fresh_for))
    };
    assert_eq!(silent(105, 17), None);
    assert_eq!(silent(106, 17), Some(start + Duration::from_secs(46)));
    assert_eq!(silent(106, 182), None, "it reports once a minute");
}

#[test]
fn old_readings_are_ignored() {
    let nvidia = |fresh_for| {
        let mut readings = NvidiaReadings::default();
        let now = Instant::now();
        readings.take_gpu("0, GPU-a, 1, 5, 6, 7, 8, 1, 9, A", now, fresh_for);
        for line in ["77, GPU-a, 3", "77, MIG-b, 3", "770, GPU-a, 3"] {
            readings.take_process(line, now, fresh_for);
        }
        let readings = Arc::new(Mutex::new(readings));
        NvidiaSmi {
            readings,
            fresh_for,
            has_host_pids: true,
            started: Instant::now(),
        }
    };
    let tree = FileTree::new(&[]);
    let procfs = Procfs::new(&tree.path(""));
    let mut now = nvidia(Duration::from_secs(60));
    assert_eq!(now.gpus().len(), 1);
    assert_eq!(now.memory_of(&procfs, 77), [("0".to_owned(), 3.0 * MIB)]);
    assert!(now.memory_of(&procfs, 7).is_empty());
    let stale = nvidia(Duration::ZERO);
    assert!(stale.gpus().is_empty() && stale.memory_of(&procfs, 77).is_empty());
    let absence = |nvidia: &NvidiaSmi| nvidia.sources()[0].absence;
    assert_eq!(absence(&now), None);
    assert_eq!(absence(&stale), Some(Absence::GpuSilent));
    let nothing = |fresh_for| {
        let nvidia = nvidia(fresh_for);
        *lock(&nvidia.readings) = NvidiaReadings::default();
        nvidia
    };
    let mut starting = nothing(Duration::from_secs(60));
    assert_eq!(absence(&starting), Some(Absence::GpuStarting));
    lock(&starting.readings).set_unread(vec!["0000:01:00.0".to_owned()], true);
    assert_eq!(absence(&starting), Some(Absence::GpuSuspended));
    starting.has_host_pids = false;
    let hidden = starting.sources()[1].absence;
    assert_eq!(hidden, Some(Absence::GpuProcessesHidden));
    // In a container, it may report PIDs of processes outside of it.
    now.has_host_pids = false;
    assert!(now.memory_of(&procfs, 77).is_empty());
    tree.link("77/fd/3", "/dev/nvidia0");
    assert!(now.memory_of(&procfs, 77).is_empty(), "770 does not exist");
    tree.link("770/fd/3", "/dev/nvidia-uvm");
    assert_eq!(now.memory_of(&procfs, 77), [("0".to_owned(), 3.0 * MIB)]);
    tree.link("77/fd/3", "/dev/null");
    assert!(now.memory_of(&procfs, 77).is_empty());
}
