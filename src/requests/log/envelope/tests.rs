use super::*;

const LINE: &str = "0.05.446.571 I slot print_timing: id  1 | task 0 |       total time =    1430.48 ms /    67 tokens";

fn unwrap(lines: &[impl AsRef<[u8]>]) -> Vec<(String, Option<String>, Option<u64>)> {
    let mut envelope = Envelope::default();
    let unwrapped = lines.iter().flat_map(|line| envelope.take(line.as_ref()));
    unwrapped
        .map(|line| (line.text, line.origin, line.time))
        .collect()
}

fn texts(lines: &[impl AsRef<[u8]>]) -> Vec<String> {
    unwrap(lines).into_iter().map(|(text, _, _)| text).collect()
}

#[test]
fn every_wrapper_is_taken_off() {
    let quoted = LINE.replace('"', "\\\"");
    let bytes: Vec<_> = format!("\x1b[32m{LINE}\x1b[0m")
        .bytes()
        .map(|byte| byte.to_string())
        .collect();
    for (wrapped, origin) in [
        (LINE.to_owned(), None),
        (
            format!(
                "\x1b[34m0.05.446.571\x1b[0m \x1b[32mI \x1b[0m{}",
                &LINE[15..]
            ),
            None,
        ),
        (
            format!(
                r#"{{"log":"{quoted}\n","stream":"stderr","time":"2026-02-10T09:00:00.000000001Z"}}"#
            ),
            None,
        ),
        (format!(r#"{{"level":"info","msg":"{quoted}"}}"#), None),
        (
            format!(
                r#"{{"_PID":"77","MESSAGE":"{quoted}","_SYSTEMD_UNIT":"llama.service","PRIORITY":"6"}}"#
            ),
            Some("llama.service[77]"),
        ),
        (
            format!(
                r#"{{"MESSAGE":[{}],"SYSLOG_IDENTIFIER":"llama","_PID":"7"}}"#,
                bytes.join(",")
            ),
            Some("llama[7]"),
        ),
        (
            format!("2026-11-24T20:12:22.123456789Z stderr F {LINE}"),
            None,
        ),
        (format!("llama-1  | {LINE}"), Some("llama-1")),
        (format!("\x1b[36mllama-1  |\x1b[0m {LINE}"), Some("llama-1")),
        (
            format!("llama-1  | 2026-11-24T20:12:22.123456789Z {LINE}"),
            Some("llama-1"),
        ),
        (
            format!("[pod/llama-7d9f/server] {LINE}"),
            Some("llama-7d9f/server"),
        ),
        (
            format!(
                r#"[2026-11-26T11:38:12.899808289Z] time=2026-11-26T11:38:12.899Z level=INFO msg="{quoted}""#
            ),
            None,
        ),
        (
            format!(
                r#"time=2026-11-26T11:38:12.899Z level=INFO source=server.go:1 msg="{quoted}" more=1"#
            ),
            None,
        ),
        (
            format!("Nov 24 20:12:22 host llama-server[123]: {LINE}"),
            Some("host llama-server[123]"),
        ),
        (
            format!("2026-07-28T20:08:36.626065-04:00 t0 llama-server[16]: {LINE}"),
            Some("t0 llama-server[16]"),
        ),
        (
            format!("[ 1234.567890] host llama-server[16]: {LINE}").replace("[ ", "["),
            Some("host llama-server[16]"),
        ),
        (
            format!("Jun 18 08:58:34  llama-Qwen:[1351]: {LINE}"),
            Some("llama-Qwen:[1351]"),
        ),
        // In each other.
        (
            format!(
                r#"{{"log":"llama-1  | {quoted}\n","stream":"stderr","time":"2026-02-10T09:00:00Z"}}"#
            ),
            Some("llama-1"),
        ),
    ] {
        let expected = (LINE.to_owned(), origin.map(str::to_owned), None);
        assert_eq!(unwrap(&[&wrapped]), [expected], "{wrapped}");
    }
}

#[test]
fn llama_servers_own_objects_have_a_time_and_one_line() {
    let line =
        r#"{"type":"log","time":5446571,"level":"I","msg":"slot release: x\n0.1.2.3 I forged\n"}"#;
    let own = ("slot release: x".to_owned(), None, Some(5_446_571));
    assert_eq!(unwrap(&[line]), std::slice::from_ref(&own));
    let docker = serde_json::json!({"log": format!("{line}\n"), "stream": "stdout", "time": "2026-02-10T09:00:00Z"});
    assert_eq!(unwrap(&[docker.to_string()]), [own]);
    for other in [
        r#"{"type":"other","time":5,"level":"I","msg":"m"}"#,
        r#"{"type":"log","time":"5","level":"I","msg":"m"}"#,
        r#"{"type":"log","time":5,"msg":"m"}"#,
    ] {
        assert_eq!(unwrap(&[other]), [("m".to_owned(), None, None)], "{other}");
    }
}

#[test]
fn the_rest_of_a_long_line_is_not_a_line() {
    let docker = |text: &str, stream: &str| {
        serde_json::json!({"log": text, "stream": stream, "time": ""}).to_string()
    };
    let long = "x".repeat(DOCKER_PIECE_BYTES);
    assert_eq!(
        texts(&[
            docker(&long, "stderr"),
            docker(&long, "stderr"),
            docker("other\n", "stdout"),
            docker(" end\n", "stderr"),
            docker("next\n", "stderr"),
        ]),
        [&long, "other", "next"]
    );
    let without_ends = [docker("one", "stderr"), docker("two", "stderr")];
    assert_eq!(texts(&without_ends), ["one", "two"]);
    let time = "2026-11-24T20:12:22Z";
    assert_eq!(
        texts(&[
            format!("{time} stderr P a long"),
            format!("{time} stdout F other"),
            format!("{time} stderr P slot"),
            format!("{time} stderr F slot"),
            format!("{time} stderr F next"),
            format!("{time} stderr F "),
        ]),
        ["a long", "other", "next", ""]
    );
}

#[test]
fn entries_of_journalctl_export_are_read() {
    let mut log = b"__CURSOR=s=1\n_PID=7\nMESSAGE=one\n_SYSTEMD_UNIT=a.service\nPRIORITY=6\n\n\
            __CURSOR=s=2\nMESSAGE\n"
        .to_vec();
    let coloured = format!("\x1b[32m{LINE}\x1b[0m\nmore");
    log.extend((coloured.len() as u64).to_le_bytes());
    log.extend(coloured.bytes());
    log.extend(b"\n_PID=8\nCOREDUMP\n");
    log.extend(5u64.to_le_bytes());
    log.extend(b"a\n\nbc\n\n__CURSOR=s=3\n0.1.2.3 I no field\nMESSAGE=plain\n");
    let lines: Vec<_> = log.split(|byte| *byte == b'\n').collect();
    let text = |text: &str, source: &str| (text.to_owned(), Some(source.to_owned()), None);
    let plain = |text: &str| (text.to_owned(), None, None);
    assert_eq!(
        unwrap(&lines),
        [
            text("one", "a.service[7]"),
            text(LINE, "[8]"),
            text("more", "[8]"),
            plain("0.1.2.3 I no field"),
            plain("MESSAGE=plain"),
            plain("")
        ]
    );
}

#[test]
fn lines_in_utf_16_are_read() {
    let log: Vec<u8> = format!("\u{feff}first\r\n{LINE}\r\n")
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let lines: Vec<_> = log.split(|byte| *byte == b'\n').collect();
    // Of the first line, the mark at its beginning is not UTF-8.
    assert_eq!(texts(&lines), ["", LINE, ""]);
}

#[test]
fn unknown_formats_are_left_as_they_are() {
    for line in [
        "",
        "{",
        "{\"log\":3}",
        "{\"msg\":\"cut",
        "slot launch_slot_: id  0 | task 1 | processing task",
        "[34541] 0.03.7 I srv          stop: cancel task, id_task = 3",
        "0.00.004.004 I srv    load_model: loading model '/models/x[1]: y'",
        "[2026] x",
        "level=INFO msg=\"no end",
        "2026-11-24T20:12:22Z stderr X text",
    ] {
        assert_eq!(texts(&[line]), [line], "{line}");
    }
    assert_eq!(texts(&[b"abc\xffdef".as_slice()]), ["abc"]);
}
