use super::*;

use crate::requests::log::parser::parse;

/// What comes of the lines of one server with two slots, and then of nothing more.
fn results(log: &str) -> Vec<Result<RequestEnd, Rejection>> {
    let now = Instant::now();
    let mut tracker = Tracker::default();
    let mut results = Vec::new();
    for line in log.lines().filter_map(parse) {
        let Some(event) = line.event else { continue };
        match tracker.take(&line, event, now, Some(2)) {
            Ok(ended) => results.extend(ended.into_iter().map(|ended| Ok(ended.end))),
            Err(rejection) => results.push(Err(rejection)),
        }
    }
    let settled = tracker.settle(now + 2 * RELEASE_TIMEOUT, RELEASE_TIMEOUT);
    results.extend(settled.into_iter().map(|ended| Ok(ended.end)));
    results
}

fn ends(log: &str) -> Vec<RequestEnd> {
    results(log).into_iter().map(Result::unwrap).collect()
}

fn rejections(log: &str) -> Vec<Rejection> {
    results(log).into_iter().filter_map(Result::err).collect()
}

fn completed(prompt: f64, prompt_n: u64, generation: f64, n: u64, total_ms: f64) -> RequestEnd {
    let timing = |ms, tokens| PhaseTiming { ms, tokens };
    RequestEnd::Completed {
        timings: RequestTimings {
            prompt: timing(prompt, prompt_n),
            generation: timing(generation, n),
            total_ms,
            is_child: false,
        },
        is_truncated: false,
    }
}

#[test]
fn requests_of_two_slots_interleave() {
    let log = "\
slot launch_slot_: id  0 | task 1 | processing task, is_child = 0
slot launch_slot_: id  1 | task 2 | processing task, is_child = 0
slot print_timing: id  0 | task 1 | prompt eval time =      10.00 ms /     5 tokens (x)
slot print_timing: id  1 | task 2 | prompt eval time =      20.00 ms /     6 tokens (x)
slot print_timing: id  1 | task 2 |        eval time =     200.00 ms /    60 tokens (x)
slot print_timing: id  0 | task 1 |        eval time =     100.00 ms /    50 tokens (x)
slot print_timing: id  0 | task 1 |       total time =     110.00 ms /    55 tokens
slot      release: id  0 | task 1 | stop processing: n_tokens = 54, truncated = 0
slot print_timing: id  1 | task 2 |       total time =     220.00 ms /    66 tokens
slot      release: id  1 | task 2 | stop processing: n_tokens = 65, truncated = 0
";
    assert_eq!(
        ends(log),
        [
            completed(10.0, 5, 100.0, 50, 110.0),
            completed(20.0, 6, 200.0, 60, 220.0)
        ]
    );
}

#[test]
fn an_embedding_counts_its_prompt() {
    let log = "\
slot launch_slot_: id  1 | task 0 | processing task, is_child = 0
slot      release: id  1 | task 0 | stop processing: n_tokens = 5, truncated = 0
";
    assert_eq!(ends(log), [RequestEnd::PromptOnly(5)]);
}

#[test]
fn a_cancelled_request_is_counted_once() {
    let log = "\
slot launch_slot_: id  1 | task 2 | processing task, is_child = 0
srv          stop: cancel task, id_task = 2
srv          stop: cancel task, id_task = 2
slot      release: id  1 | task 2 | stop processing: n_tokens = 45, truncated = 0
srv          stop: cancel task, id_task = 24
";
    assert_eq!(ends(log), [RequestEnd::Cancelled, RequestEnd::Cancelled]);
}

#[test]
fn a_failed_request_counts_its_status_and_nothing_else() {
    let log = "\
slot launch_slot_: id  0 | task 18 | processing task, is_child = 0
srv    send_error: task id = 18, error: request (3002 tokens) exceeds the available context size
srv          stop: cancel task, id_task = 18
slot      release: id  0 | task 18 | stop processing: n_tokens = 5, truncated = 0
";
    assert_eq!(ends(log), [RequestEnd::Failed(400)]);
}

#[test]
fn a_request_that_is_refused_counts_its_status() {
    let log = "\
srv    operator(): got exception: {\"error\":{\"code\":500,\"message\":\"parse error\",\"type\":\"server_error\"}}
srv    operator(): got exception: {\"error\":{\"code\":400,\"message\":\"'messages' is required\"}}
srv    operator(): got exception: {\"error\":{\"code\":777,\"message\":\"forged\"}}
srv    send_error: task id = 17, error: Failed to initialize samplers: failed to parse grammar
srv          stop: cancel task, id_task = 17
srv    send_error: task id = 18, error: Context size has been exceeded.
";
    let statuses = [500, 400, 400, 500].map(RequestEnd::Failed);
    assert_eq!(ends(log), statuses);
}

#[test]
fn a_server_that_shuts_down_cancels_no_request() {
    let log = "\
slot launch_slot_: id  0 | task 3 | processing task, is_child = 0
srv    operator(): operator(): cleaning up before exit...
srv          stop: cancel task, id_task = 3
srv          stop: cancel task, id_task = 4
";
    assert_eq!(ends(log), []);
    // A server that launches a task does not shut down: the line was forged.
    let next = "\
slot launch_slot_: id  0 | task 5 | processing task, is_child = 0
srv          stop: cancel task, id_task = 5
";
    assert_eq!(ends(&format!("{log}{next}")), [RequestEnd::Cancelled]);
}

#[test]
fn a_server_that_falls_asleep_cancels_no_request() {
    let log = "\
0.02.483.338 I que    start_loop: entering sleeping state
0.02.483.462 I srv  handle_sleep: server is entering sleeping state
0.03.629.980 W srv          stop: cancel task, id_task = 815
0.06.828.421 I srv  handle_sleep: server is exiting sleeping state
0.07.893.193 I slot launch_slot_: id  1 | task 817 | processing task, is_child = 0
0.08.100.000 W srv          stop: cancel task, id_task = 817
";
    assert_eq!(ends(log), [RequestEnd::Cancelled]);
}

#[test]
fn the_release_of_the_slot_says_whether_a_request_is_truncated() {
    let is_truncated = |log: &str| match ends(log)[..] {
        [RequestEnd::Completed { is_truncated, .. }] => is_truncated,
        ref others => panic!("{others:?}"),
    };
    assert!(!is_truncated(TIMED));
    let truncated = TIMED.replace("truncated = 0", "truncated = 1");
    assert!(is_truncated(&truncated));
    let (timings, release) = truncated.trim_end().rsplit_once('\n').unwrap();
    assert!(!is_truncated(timings), "the release of the slot is missing");
    // Before b7376 the release comes first.
    let (launch, timings) = timings.split_once('\n').unwrap();
    let untimed = |text: &str| -> String {
        text.lines()
            .map(|line| format!("{}\n", &line[15..]))
            .collect()
    };
    let first = [launch, release, timings].map(untimed).concat();
    assert!(is_truncated(&first));
}

#[test]
fn a_request_without_its_first_lines_is_not_counted() {
    for log in [
        "slot print_timing: id  0 | task 1 |        eval time =     100.00 ms /    50 tokens (x)\n\
             slot print_timing: id  0 | task 1 |       total time =     110.00 ms /    55 tokens\n\
             slot      release: id  0 | task 1 | stop processing: n_tokens = 54, truncated = 0\n",
        "slot      release: id  0 | task 1 | stop processing: n_tokens = 54, truncated = 0\n",
        "       eval time =     100.00 ms /    50 tokens (x)\n      total time =     110.00 ms /    55 tokens\n",
    ] {
        assert_eq!(ends(log), [], "{log}");
    }
}

#[test]
fn a_restart_discards_running_tasks() {
    let log = "\
slot launch_slot_: id  0 | task 1 | processing task, is_child = 0
srv    load_model: loading model '/m.gguf'
slot      release: id  0 | task 1 | stop processing: n_tokens = 54, truncated = 0
";
    assert_eq!(ends(log), []);
}

#[test]
fn a_task_with_timings_is_not_an_embedding() {
    let launch = "slot launch_slot_: id  0 | task 7 | processing task\n";
    let release =
        "slot      release: id  0 | task 7 | stop processing: n_tokens = 9, truncated = 0\n";
    for lost in [
        "slot print_timing: id  0 | task 7 | \n",
        "slot print_timing: id  0 | task 7 | \\n\",\"stream\":\"stderr\"}\n",
        "slot print_timing: id  0 | task 7 | prompt eval time =      10.00 ms /     5 tokens (x)\n",
        "slot print_timing: id  0 | task 7 |        eval time =      10.00 ms /     5 tokens (x)\n",
        "slot print_timing: id  0 | task 7 |       total time =      10.00 ms /     5 tokens\n",
    ] {
        assert_eq!(ends(&format!("{launch}{lost}{release}")), [], "{lost}");
    }
    assert_eq!(
        ends(&format!("{launch}{release}")),
        [RequestEnd::PromptOnly(9)]
    );
}

#[test]
fn timings_may_follow_the_release_of_the_slot() {
    let release = "\
slot launch_slot_: id  0 | task 35 | processing task
slot      release: id  0 | task 35 | stop processing: n_past = 434, truncated = 0
";
    let timings = "\
slot print_timing: id  0 | task 35 |
prompt eval time =     182.78 ms /   237 tokens (x)
       eval time =     342.29 ms /    13 tokens (x)
      total time =     525.07 ms /   250 tokens
srv  update_slots: all slots are idle
";
    let both = format!("{release}{timings}");
    assert_eq!(ends(&both), [completed(182.78, 237, 342.29, 13, 525.07)]);
    let next = "slot launch_slot_: id  0 | task 36 | processing task\n";
    assert_eq!(
        ends(&format!("{release}{next}")),
        [RequestEnd::PromptOnly(434)]
    );
}

#[test]
fn a_repeated_request_is_counted_once() {
    let log = "\
slot print_timing: id  0 | task 1 | prompt eval time =      10.00 ms /     5 tokens (x)
slot print_timing: id  0 | task 1 |        eval time =     100.00 ms /    50 tokens (x)
slot print_timing: id  0 | task 1 |       total time =     110.00 ms /    55 tokens
";
    assert_eq!(ends(&log.repeat(3)), [completed(10.0, 5, 100.0, 50, 110.0)]);
}

const TIMED: &str = "\
0.10.000.000 I slot launch_slot_: id  0 | task 1 | processing task
0.12.000.000 I slot print_timing: id  0 | task 1 | prompt eval time =     500.00 ms /     5 tokens (x)
0.12.000.000 I slot print_timing: id  0 | task 1 |        eval time =    1500.00 ms /    50 tokens (x)
0.12.000.000 I slot print_timing: id  0 | task 1 |       total time =    2000.00 ms /    55 tokens
0.12.000.000 I slot      release: id  0 | task 1 | stop processing: n_tokens = 54, truncated = 0
";

#[test]
fn lines_without_a_time_are_rejected_in_a_log_with_times() {
    let plain: String = TIMED
        .lines()
        .map(|line| format!("{}\n", &line[15..]))
        .collect();
    let plain = plain.replace("task 1", "task 2");
    let one = completed(500.0, 5, 1500.0, 50, 2000.0);
    assert_eq!(ends(TIMED), [one]);
    assert_eq!(ends(&plain), [one]);
    let mixed = results(&format!("{TIMED}{plain}"));
    assert_eq!(mixed[0], Ok(one));
    assert_eq!(mixed[1..], [Err(Rejection::Format); 5]);
    // Nor the other way round, until another server is started.
    assert_eq!(
        rejections(&format!("{plain}{TIMED}")),
        [Rejection::Format; 5]
    );
    let loading = "0.00.000.100 I srv    load_model: loading model 'm'\n";
    let upgraded = results(&format!("{plain}{loading}{TIMED}"));
    assert_eq!(upgraded, [Ok(one), Ok(one)]);
    // That line may have been forged: then lines without a time go on.
    let forged = format!("{plain}{loading}{}", plain.repeat(8));
    assert_eq!(rejections(&forged).len(), MAX_UNTIMED as usize);
}

#[test]
fn lines_that_go_back_in_time_are_rejected() {
    let early = TIMED
        .replace("0.10.", "0.09.")
        .replace("0.12.", "0.11.")
        .replace("task 1", "task 2");
    assert_eq!(rejections(&format!("{TIMED}{early}")), [Rejection::Time; 5]);
    let restarted = format!("{TIMED}0.00.500.000 I srv  load_model: loading model 'm'\n{early}");
    assert_eq!(rejections(&restarted), []);
    assert_eq!(ends(&restarted).len(), 2);
}

#[test]
fn lines_of_a_slot_that_does_not_exist_are_rejected() {
    assert_eq!(
        rejections(&TIMED.replace("id  0", "id  2")),
        [Rejection::Slot; 5]
    );
    // A server reports its slots before its first task.
    let late = format!(
        "{TIMED}0.13.000.000 I srv load_model: initializing, n_slots = 9, n_ctx_slot = 7\n"
    );
    assert_eq!(rejections(&late), [Rejection::Slot]);
}

#[test]
fn a_request_cannot_take_longer_than_since_its_launch() {
    let total = "total time =    2000.00 ms";
    for longer in ["total time =    2020.00 ms", "total time =  200000.00 ms"] {
        assert_eq!(
            rejections(&TIMED.replace(total, longer)),
            [Rejection::Duration]
        );
    }
    let parts = TIMED.replace("eval time =     500.00", "eval time =     600.00");
    assert_eq!(rejections(&parts), [Rejection::Duration]);
    // Nor longer than since the start of the server, if its launch was not read.
    let (_, unlaunched) = TIMED.split_once('\n').unwrap();
    let longer = unlaunched.replace(total, "total time =   11000.00 ms");
    assert_eq!(ends(&longer).len(), 1);
    let longer = unlaunched.replace(total, "total time =   13000.00 ms");
    assert_eq!(rejections(&longer), [Rejection::Duration]);
}

#[test]
fn tokens_of_running_tasks_are_known_until_they_end() {
    let log = "\
slot launch_slot_: id  0 | task 1 | processing task, is_child = 0
slot launch_slot_: id  1 | task 2 | processing task, is_child = 0
slot print_timing: id  0 | task 1 | n_gen =    181, tg =  59.87 t/s, tg_3s =  60.20 t/s
slot print_timing: id  0 | task 1 | n_gen =    361, tg =  59.87 t/s, tg_3s =  60.20 t/s
srv          stop: cancel task, id_task = 1
";
    let mut tracker = Tracker::default();
    let running: Vec<_> = log
        .lines()
        .map(|line| {
            let line = parse(line).unwrap();
            let event = line.event.unwrap();
            tracker.take(&line, event, Instant::now(), Some(2)).unwrap();
            let running = tracker.running();
            running
                .map(|task| (task.id, task.generated_tokens))
                .collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(running[1], [(1, 0), (2, 0)]);
    assert_eq!(running[2..4], [[(1, 181), (2, 0)], [(1, 361), (2, 0)]]);
    assert_eq!(running[4], [(2, 0)]);
}

#[test]
fn tracked_slots_and_tasks_are_limited() {
    for (slots, most) in [(None, MAX_LOGGED_SLOTS), (Some(u64::MAX), MAX_SLOTS)] {
        let mut tracker = Tracker::default();
        for id in 0..10_000u64 {
            let launch = format!("slot launch_slot_: id  {id} | task {id} | processing task");
            let cancel = format!("srv  stop: cancel task, id_task = {id}");
            for line in [launch, cancel] {
                let line = parse(&line).unwrap();
                let _ = tracker.take(&line, line.event.unwrap(), Instant::now(), slots);
            }
        }
        assert_eq!(tracker.tasks.len(), most);
        assert_eq!(tracker.known_slots.len(), most);
        assert!(tracker.ended.len() <= MAX_ENDED);
    }
}
