use super::*;

const TASK: SlotTask = SlotTask { slot: 1, id: 150 };

fn event(line: &str) -> Option<LogEvent> {
    parse(line).and_then(|line| line.event)
}

#[test]
fn timings_are_parsed_with_and_without_their_task() {
    let span = PhaseTiming {
        ms: 42.92,
        tokens: 7,
    };
    let words = "prompt eval time =      42.92 ms /     7 tokens (    6.13 ms per token,   163.08 tokens per second)";
    let headed = format!("0.05.446.571 I slot print_timing: id  1 | task 150 | {words}");
    assert_eq!(event(&headed), Some(LogEvent::Prompt(Some(TASK), span)));
    assert_eq!(event(words), Some(LogEvent::Prompt(None, span)));
    assert_eq!(
        event(
            "       eval time =       0.00 ms /     1 tokens (    -nan ms per token, 1000000.00 tokens per second)"
        ),
        Some(LogEvent::Generation(
            None,
            PhaseTiming { ms: 0.0, tokens: 1 }
        ))
    );
    assert_eq!(
        event("slot print_timing: id  1 | task 150 | "),
        Some(LogEvent::TimingsOf(TASK))
    );
}

#[test]
fn an_unknown_wrapper_is_skipped() {
    let words =
        "slot      release: id  1 | task 150 | stop processing: n_tokens = 44, truncated = 0";
    for (prefix, time) in [
        ("", None),
        ("0.05.846.253 I ", Some(5_846_253)),
        ("317.06.410.187 W ", Some(19_026_410_187)),
        ("[llama] 0.05.846.253 I ", Some(5_846_253)),
        ("host srv 0.05.846.253 I ", Some(5_846_253)),
        ("0.05.846.253 i ", None),
        ("0.5.846.253 I ", None),
        ("0.05.846.253.1 I ", None),
        ("99999999999999999999.05.846.253 I ", None),
        ("I ", None),
        ("{\"unknown\":\"", None),
        ("    MESSAGE=", None),
    ] {
        let line = format!("{prefix}{words}");
        let read = parse(&line).unwrap_or_else(|| panic!("{prefix:?}"));
        let expected = LogLine {
            port: None,
            time,
            event: Some(LogEvent::Released {
                task: TASK,
                tokens: 44,
                is_truncated: false,
            }),
        };
        assert_eq!(read, expected, "{prefix:?}");
        for behind in ["", "\\n\",\"stream\":\"stderr\"}", "\""] {
            let timing = format!("{prefix}      total time =    1430.48 ms /    67 tokens{behind}");
            let total = event(&timing);
            assert!(matches!(total, Some(LogEvent::Total(None, _))), "{timing}");
            let head = format!("{prefix}slot print_timing: id  1 | task 150 | {behind}");
            assert_eq!(event(&head), Some(LogEvent::TimingsOf(TASK)), "{head}");
        }
    }
}

#[test]
fn the_port_of_a_routers_child_is_parsed() {
    for (line, port) in [
        (
            "[34541] 0.03.7 I srv          stop: cancel task, id_task = 3",
            Some(34541),
        ),
        (
            "unknown | [34541] 0.03.7 I srv          stop: cancel task, id_task = 3",
            Some(34541),
        ),
        (
            "host llama[77]: [ 8081] srv          stop: cancel task, id_task = 3",
            Some(8081),
        ),
        (
            "host llama[77]: srv          stop: cancel task, id_task = 3",
            None,
        ),
    ] {
        let read = parse(line).unwrap();
        assert_eq!(
            (read.port, read.event),
            (port, Some(LogEvent::Cancelled(3))),
            "{line}"
        );
    }
}

#[test]
fn the_slots_in_logs_of_old_and_new_builds_are_parsed() {
    assert_eq!(
        event(
            "srv    load_model: initializing, n_slots = 2, n_ctx_slot = 2048, kv_unified = 'true'"
        ),
        Some(LogEvent::Slots(LoggedSlots {
            slots: Some(2),
            slot_context: Some(2048),
            kv_unified: Some(true)
        }))
    );
    assert_eq!(
        event("srv          init: initializing slots, n_slots = 4"),
        Some(LogEvent::Slots(LoggedSlots {
            slots: Some(4),
            slot_context: None,
            kv_unified: None
        }))
    );
    assert_eq!(
        event("slot   load_model: id  0 | task -1 | new slot, n_ctx = 2048"),
        Some(LogEvent::Slots(LoggedSlots {
            slot_context: Some(2048),
            ..LoggedSlots::default()
        }))
    );
    assert_eq!(
        event("llama_context: kv_unified    = false"),
        Some(LogEvent::Slots(LoggedSlots {
            kv_unified: Some(false),
            ..LoggedSlots::default()
        }))
    );
}

#[test]
fn an_error_is_not_a_cancellation() {
    assert_eq!(
        event(
            "0.39.291.176 E srv    send_error: task id = 18, error: request (3002 tokens) exceeds the available context size"
        ),
        Some(LogEvent::Failed(18, 400))
    );
}

#[test]
fn the_tokens_of_a_running_task_are_parsed() {
    for line in [
        "0.13.133.146 I slot print_timing: id  1 | task 150 | n_gen =    102, tg =  15.74 t/s, tg_3s =  15.90 t/s",
        "0.04.200.684 I slot print_timing: id  1 | task 150 | n_decoded =    102, tg =  39.78 t/s",
    ] {
        assert_eq!(event(line), Some(LogEvent::Generated(TASK, 102)), "{line}");
    }
}

#[test]
fn lines_that_a_line_quotes_are_not_parsed() {
    for line in [
        "srv  log_server_r: request: {\"prompt\":\"slot print_timing: id  1 | task 150 | total time = 1.00 ms / 2 tokens\"}",
        "0.05 I slot update_slots: id  1 | task 2 | prompt: 'srv stop: cancel task, id_task = 2'",
        "my favourite slot release: id  1",
        "retotal time = 1.00 ms / 2 tokens",
        "slot print_timing: id  1 | task 2 | prompt processing, n_tokens =    102, progress = 0.5",
        "slot print_timing: id  1 | task 2 | total time = NaN ms / 2 tokens",
        "slot print_timing: id  1 | task 2 | total time = -3 ms / 2 tokens",
        "",
        "slot ",
        "srv : ",
    ] {
        assert_eq!(event(line), None, "{line}");
    }
}
