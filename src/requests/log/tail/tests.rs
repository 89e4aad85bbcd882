use super::*;
use std::io::Write;

use tempfile::tempdir;

fn truncate(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(0).unwrap();
}

fn append(path: &Path, text: &str) {
    let mut file = File::options()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

/// What a look brings: history in brackets.
fn step(tail: &mut LogTail) -> Vec<String> {
    let mut seen = Vec::new();
    tail.poll(&|| {}, &mut |line: &[u8], history: bool| {
        let line = String::from_utf8_lossy(line);
        seen.push(if history {
            format!("[{line}]")
        } else {
            line.into_owned()
        });
    });
    seen
}

#[test]
fn it_starts_at_the_end_and_completes_the_last_line() {
    let folder = tempdir().unwrap();
    let log = folder.path().join("log");
    append(&log, "old\nbeg");
    let mut tail = LogTail::new(&log);
    assert_eq!(step(&mut tail), ["[old]"]);
    append(&log, "un\nne");
    assert_eq!(step(&mut tail), ["begun"]);
    append(&log, "w\n");
    assert_eq!(step(&mut tail), ["new"]);
    assert!(step(&mut tail).is_empty());
}

#[test]
fn a_file_that_appears_later_is_read_from_its_beginning() {
    let folder = tempdir().unwrap();
    let log = folder.path().join("log");
    let mut tail = LogTail::new(&log);
    assert!(step(&mut tail).is_empty());
    append(&log, "one\n");
    assert_eq!(step(&mut tail), ["one"]);
}

#[test]
fn a_replaced_file_and_the_new_one_are_read_once() {
    let folder = tempdir().unwrap();
    let log = folder.path().join("log");
    append(&log, "");
    let mut tail = LogTail::new(&log);
    step(&mut tail);
    append(&log, "one\n");
    fs::rename(&log, folder.path().join("log.1")).unwrap();
    append(&folder.path().join("log.1"), "two\n");
    assert_eq!(step(&mut tail), ["one", "two"]);
    append(&folder.path().join("log.1"), "three\n");
    append(&log, "four\n");
    assert_eq!(step(&mut tail), ["three", "four"]);
    // A writer that has not reopened its log yet is still read.
    append(&folder.path().join("log.1"), "five\n");
    append(&log, "six\n");
    assert_eq!(step(&mut tail), ["five", "six"]);
    fs::remove_file(&log).unwrap();
    append(&log, "seven\n");
    assert_eq!(step(&mut tail), ["seven"]);
}

#[test]
fn a_truncated_file_is_read_from_its_beginning() {
    let folder = tempdir().unwrap();
    let log = folder.path().join("log");
    append(&log, "a first line\n");
    let mut tail = LogTail::new(&log);
    step(&mut tail);
    truncate(&log);
    append(&log, "one\n");
    assert_eq!(step(&mut tail), ["one"]);
    // Truncated and grown beyond its old length between two polls.
    truncate(&log);
    append(&log, "two\nthree\nfour\n");
    assert_eq!(step(&mut tail), ["two", "three", "four"]);
}

#[test]
fn a_writer_that_does_not_append_leaves_a_hole_and_loses_no_line() {
    let folder = tempdir().unwrap();
    let log = folder.path().join("log");
    let mut writer = File::create(&log).unwrap();
    writer.write_all(b"a first line\n").unwrap();
    let mut tail = LogTail::new(&log);
    step(&mut tail);
    truncate(&log);
    assert!(step(&mut tail).is_empty());
    writer.write_all(b"one\n").unwrap();
    assert_eq!(step(&mut tail), ["one"]);
    truncate(&log);
    writer.write_all(b"two\n").unwrap();
    assert_eq!(step(&mut tail), ["two"]);
}

#[test]
fn a_folder_is_not_a_log() {
    let folder = tempdir().unwrap();
    let log = folder.path().join("log");
    fs::create_dir(&log).unwrap();
    let mut tail = LogTail::new(&log);
    assert!(step(&mut tail).is_empty());
    assert!(matches!(&tail.logged, Some(Some(_))));
    fs::remove_dir(&log).unwrap();
    append(&log, "one\n");
    step(&mut tail);
    assert_eq!(tail.logged, Some(None));
}

#[test]
fn only_regular_files_and_fifos_are_opened() {
    let folder = tempdir().unwrap();
    let log = folder.path().join("log");
    for device in ["/dev/zero", "/dev/null", "/dev/tty"] {
        std::os::unix::fs::symlink(device, &log).unwrap();
        let mut tail = LogTail::new(&log);
        assert!(step(&mut tail).is_empty());
        let error = tail.logged.unwrap().unwrap();
        assert_eq!(error, "it is a device, not a regular file");
        fs::remove_file(&log).unwrap();
    }
}

#[test]
fn holes_of_terabytes_are_skipped() {
    let folder = tempdir().unwrap();
    let log = folder.path().join("log");
    append(&log, "old\n");
    let grow = |by: u64| {
        let file = File::options().write(true).open(&log).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length + by).unwrap();
    };
    // As much as the file system takes.
    const HOLE: u64 = 4 << 40;
    grow(HOLE);
    append(&log, "before\n");
    let mut tail = LogTail::new(&log);
    assert_eq!(step(&mut tail), ["[before]"]);
    grow(HOLE);
    assert!(step(&mut tail).is_empty());
    append(&log, "one\ntwo\n");
    assert_eq!(step(&mut tail), ["one", "two"]);
    // A look at a file that does not grow reads nothing more.
    let at = tail.current.as_ref().unwrap().at;
    assert_eq!(at, fs::metadata(&log).unwrap().len());
}

#[test]
fn after_too_much_growth_the_beginning_and_the_end_are_read() {
    let folder = tempdir().unwrap();
    let log = folder.path().join("log");
    let lines: String = (0..100_000)
        .map(|number| format!("{number:09}\n"))
        .collect();
    append(&log, &lines);
    let mut opened = OpenFile::open(&log).unwrap();
    let mut seen: Vec<u32> = Vec::new();
    let mut sink = |line: &[u8], _: bool| {
        seen.push(std::str::from_utf8(line).unwrap().parse().unwrap());
    };
    let length = lines.len() as u64;
    opened
        .read_growth(length, 16_000, &mut [0; 4096], &mut sink)
        .unwrap();
    // A line that is cut is none.
    let expected: Vec<u32> = (0..1600).chain(99_901..100_000).collect();
    assert_eq!(seen, expected);
    assert_eq!(opened.at, length);
}

#[test]
fn a_file_that_becomes_readable_later_has_history() {
    let folder = tempdir().unwrap();
    let (log, real) = (folder.path().join("log"), folder.path().join("real"));
    append(&real, "old\n");
    // A loop of links makes the file unreadable, even for root.
    std::os::unix::fs::symlink(&log, &log).unwrap();
    let mut tail = LogTail::new(&log);
    assert!(step(&mut tail).is_empty());
    fs::rename(&real, &log).unwrap();
    assert_eq!(step(&mut tail), ["[old]"]);
    append(&log, "new\n");
    assert_eq!(step(&mut tail), ["new"]);
}

#[test]
fn a_writer_that_never_reopens_its_log_is_followed_over_rotations() {
    let folder = tempdir().unwrap();
    let (log, older) = (folder.path().join("log"), folder.path().join("log.1"));
    let mut writer = File::create(&log).unwrap();
    let mut tail = LogTail::new(&log);
    step(&mut tail);
    let mut lines = Vec::new();
    for day in ["one", "two", "three"] {
        writer.write_all(format!("{day}\n").as_bytes()).unwrap();
        lines.extend(step(&mut tail));
        fs::rename(&log, &older).unwrap();
        append(&log, "");
        lines.extend(step(&mut tail));
    }
    assert_eq!(lines, ["one", "two", "three"]);
}

#[test]
fn a_file_that_gets_its_name_back_is_not_read_twice() {
    let folder = tempdir().unwrap();
    let (log, older) = (folder.path().join("log"), folder.path().join("log.1"));
    append(&log, "");
    let mut tail = LogTail::new(&log);
    step(&mut tail);
    append(&log, "one\n");
    step(&mut tail);
    fs::rename(&log, &older).unwrap();
    append(&log, "two\n");
    assert_eq!(step(&mut tail), ["two"]);
    fs::rename(&older, &log).unwrap();
    append(&log, "three\n");
    assert_eq!(step(&mut tail), ["three"]);
}

#[test]
fn a_pipe_is_found_when_it_is_opened_and_read_line_by_line() {
    let folder = tempdir().unwrap();
    let pipe = folder.path().join("pipe");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status();
    assert!(made.unwrap().success());
    let writer = {
        let pipe = pipe.clone();
        thread::spawn(move || append(&pipe, "one\ntwo\nunfinished"))
    };
    let mut tail = LogTail::new(&pipe);
    let found = std::cell::Cell::new(false);
    let mut seen = Vec::new();
    tail.poll(&|| found.set(true), &mut |line: &[u8], history: bool| {
        assert!(found.get() && !history);
        seen.push(String::from_utf8_lossy(line).into_owned());
    });
    assert_eq!(seen, ["one", "two"]);
    writer.join().unwrap();
}

#[test]
fn binary_data_does_not_affect_the_next_line() {
    let folder = tempdir().unwrap();
    let log = folder.path().join("log");
    append(&log, "");
    let mut tail = LogTail::new(&log);
    step(&mut tail);
    let mut file = File::options().append(true).open(&log).unwrap();
    file.write_all(b"\xff\xfe\x00\n").unwrap();
    file.write_all(&[b'x'; 300_000]).unwrap();
    assert_eq!(step(&mut tail).len(), 1);
    file.write_all(b"\none\n").unwrap();
    assert_eq!(step(&mut tail)[1], "one");
}
