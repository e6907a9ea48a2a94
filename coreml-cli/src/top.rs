//! `coreml top`: what the models of a running program are doing, as its endpoint tells it.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::Context;
use coreml_client::WorkerState;
use coreml_client::monitor::{Address, Durations, ModelSnapshot, Snapshot};
use crossterm::event::{self, Event, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use crossterm::{cursor, execute, queue, terminal};
use serde::Serialize;

/// How long the endpoint may take.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where the program's endpoint listens: HOST:PORT, or the path of a socket.
    address: Address,
    /// Seconds between two pictures. Rates and quantiles are those of that time; with 0 and --once, those of the whole life
    /// of each model.
    #[arg(long, short = 'n', default_value_t = 1.0, value_parser = seconds, value_name = "SECONDS")]
    interval: f64,
    /// Print one picture and end.
    #[arg(long)]
    once: bool,
    /// Print each picture as one line of JSON.
    #[arg(long)]
    json: bool,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds @ 0.0..=3600.0) => Ok(seconds),
        _ => Err("a number from 0 to 3600".to_owned()),
    }
}

/// Two pictures, compared.
#[derive(Serialize)]
struct View {
    program: String,
    pid: u32,
    time: f64,
    uptime: f64,
    memory: u64,
    memory_budget: Option<u64>,
    /// Seconds over which rates and quantiles are taken.
    interval: f64,
    models: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    /// Answers a second, with outputs.
    throughput: f64,
    /// The share of their time that the threads were in predictions that have returned.
    busy: f64,
    /// Seconds from the call to the answer.
    p50: Option<f64>,
    p99: Option<f64>,
    #[serde(flatten)]
    model: ModelSnapshot,
}

impl View {
    /// `before` is another picture of the same program, if there is one.
    fn new(now: Snapshot, before: Option<&Snapshot>) -> Self {
        let before = before.filter(|before| before.pid == now.pid && before.uptime <= now.uptime);
        let interval = before.map_or(now.uptime, |before| now.uptime - before.uptime).max(1e-9);
        let models = now.models.into_iter().map(|model| {
            let is_same = |other: &&ModelSnapshot| {
                // A model that was evicted and came back counts from nothing.
                other.model == model.model
                    && other.version == model.version
                    && other.outcomes.submitted <= model.outcomes.submitted
            };
            let before = before.and_then(|before| before.models.iter().find(is_same));
            Row::new(model, before, interval)
        });
        View {
            program: now.program,
            pid: now.pid,
            time: now.time,
            uptime: now.uptime,
            memory: now.memory,
            memory_budget: now.memory_budget,
            interval,
            models: models.collect(),
        }
    }
}

impl Row {
    fn new(model: ModelSnapshot, before: Option<&ModelSnapshot>, interval: f64) -> Self {
        let busy = |model: &ModelSnapshot| model.workers.iter().map(|worker| worker.busy).sum::<f64>();
        let (ok_before, busy_before) = before.map_or((0, 0.0), |before| (before.outcomes.ok, busy(before)));
        let none = Durations::default();
        let recent = model.total_time.since(before.map_or(&none, |before| &before.total_time));
        let threads = model.workers.iter().filter(|worker| worker.state != WorkerState::Unstarted).count();
        Self {
            throughput: model.outcomes.ok.saturating_sub(ok_before) as f64 / interval,
            // A prediction counts when it returns, and may have begun before.
            busy: ((busy(&model) - busy_before) / (interval * threads.max(1) as f64)).clamp(0.0, 1.0),
            p50: recent.quantile(0.5).map(|duration| duration.as_secs_f64()),
            p99: recent.quantile(0.99).map(|duration| duration.as_secs_f64()),
            model,
        }
    }
}

/// The picture as text, at most so many columns wide.
fn render(view: &View, width: usize) -> String {
    let mut lines = vec![format!(
        "{} (process {}), up {}, memory {}{}",
        printable(&view.program),
        view.pid,
        clock(view.uptime),
        bytes(view.memory),
        view.memory_budget.map_or(String::new(), |budget| format!(" of {}", bytes(budget))),
    )];
    lines.push(format!(
        "{:<28} {:>8} {:>9} {:>9} {:>11} {:>4} {:>4} {:>9} {:>6} {:>6} {:>6} {:>6} {:>6} {:>9} {:>5} {:>9}",
        "model",
        "answer/s",
        "p50",
        "p99",
        "hi/norm/low",
        "wait",
        "run",
        "ok",
        "error",
        "cancel",
        "expire",
        "reject",
        "closed",
        "threads",
        "busy",
        "memory",
    ));
    for Row { throughput, busy, p50, p99, model } in &view.models {
        let name = format!(
            "{} v{}{}",
            printable(&model.model),
            model.version,
            if model.evicted { " evicted" } else { "" }
        );
        let [high, normal, low] = model.depth;
        let [running, alive] = [
            model.workers.iter().filter(|worker| worker.state == WorkerState::Running).count(),
            model
                .workers
                .iter()
                .filter(|worker| !matches!(worker.state, WorkerState::Unstarted | WorkerState::Stopped))
                .count(),
        ];
        let outcomes = model.outcomes;
        lines.push(format!(
            "{:<28} {throughput:>8.1} {:>9} {:>9} {:>11} {:>4} {:>4} {:>9} {:>6} {:>6} {:>6} {:>6} {:>6} {:>9} {:>4.0}% {:>9}",
            clipped(&name, 28),
            duration(*p50),
            duration(*p99),
            format!("{high}/{normal}/{low}"),
            model.waiting,
            model.running,
            outcomes.ok,
            outcomes.error,
            outcomes.cancelled,
            outcomes.expired,
            outcomes.rejected,
            outcomes.closed,
            format!("{running} of {alive}"),
            busy * 100.0,
            bytes(model.memory),
        ));
    }
    if view.models.is_empty() {
        lines.push("no model is loaded".to_owned());
    }
    let mut text = String::new();
    for line in lines {
        let _ = writeln!(text, "{}", clipped(line.trim_end(), width));
    }
    text
}

/// Names come from another program: nothing in them may speak to the terminal.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn clipped(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        None => text.to_owned(),
        Some(_) => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
    }
}

fn duration(seconds: Option<f64>) -> String {
    match seconds {
        None => "-".to_owned(),
        Some(s) if s >= 1.0 => format!("{s:.2} s"),
        Some(s) if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        Some(s) => format!("{:.1} µs", s * 1e6),
    }
}

fn bytes(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0..1_024 => format!("{bytes} B"),
        1_024..1_048_576 => format!("{:.1} KiB", value / 1_024.0),
        1_048_576..1_073_741_824 => format!("{:.1} MiB", value / 1_048_576.0),
        _ => format!("{:.2} GiB", value / 1_073_741_824.0),
    }
}

fn clock(seconds: f64) -> String {
    // A number that is none, or too large, saturates.
    let seconds = seconds as u64;
    format!("{}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let read = || {
        Snapshot::read(&options.address, PATIENCE)
            .with_context(|| format!("cannot ask the endpoint at {}", options.address))
    };
    let interval = Duration::from_secs_f64(options.interval);
    let mut before = None;
    if options.once {
        if !interval.is_zero() {
            before = Some(read()?);
            std::thread::sleep(interval);
        }
        let view = View::new(read()?, before.as_ref());
        return print(&view, options.json);
    }
    // Below that, pictures repeat themselves.
    let interval = interval.max(Duration::from_millis(100));
    if options.json || !io::stdout().is_terminal() {
        loop {
            let now = read()?;
            let view = View::new(now.clone(), before.as_ref());
            before = Some(now);
            print(&view, options.json)?;
            std::thread::sleep(interval);
        }
    }
    let _screen = Screen::take()?;
    loop {
        let start = Instant::now();
        // A program that stops answering may come back.
        let text = match read() {
            Ok(now) => {
                let view = View::new(now.clone(), before.as_ref());
                before = Some(now);
                render(&view, size()?.0)
            }
            Err(error) => format!("{}\n", printable(&format!("{error:#}"))),
        };
        draw(&text)?;
        if wants_to_leave(start + interval)? {
            return Ok(());
        }
    }
}

fn print(view: &View, json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, view)?;
        writeln!(out)?;
    } else {
        write!(out, "{}", render(view, usize::MAX))?;
    }
    Ok(out.flush()?)
}

fn draw(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    queue!(out, cursor::MoveTo(0, 0))?;
    for line in text.lines().take(size()?.1 - 1) {
        // The terminal is raw: a line does not return to its left edge.
        write!(out, "{line}")?;
        queue!(out, terminal::Clear(terminal::ClearType::UntilNewLine))?;
        write!(out, "\r\n")?;
    }
    queue!(out, terminal::Clear(terminal::ClearType::FromCursorDown))?;
    write!(out, "q leaves")?;
    out.flush()
}

/// Columns and lines; some terminals do not know theirs.
fn size() -> io::Result<(usize, usize)> {
    let (columns, lines) = terminal::size()?;
    let or = |size: u16, default| if size == 0 { default } else { usize::from(size) };
    Ok((or(columns, 80), or(lines, 24)))
}

/// Waits, and listens for `q`, Escape and Ctrl-C.
fn wants_to_leave(until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if !event::poll(left)? {
            return Ok(false);
        }
        if let Event::Key(KeyEvent { code, modifiers, kind: KeyEventKind::Press, .. }) = event::read()? {
            match code {
                KeyCode::Char('q') | KeyCode::Esc => return Ok(true),
                KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return Ok(true),
                _ => {}
            }
        }
    }
}

/// The terminal's other screen, without echo; gives both back.
struct Screen;

impl Screen {
    fn take() -> io::Result<Self> {
        terminal::enable_raw_mode()?;
        // From here on the terminal is put back, whatever fails.
        let screen = Self;
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = execute!(io::stdout(), cursor::Show, terminal::LeaveAlternateScreen);
        let _ = terminal::disable_raw_mode();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(uptime: f64, ok: u64, buckets: &[(u64, u64)], busy: f64) -> Snapshot {
        let outcomes = |ok: u64| {
            serde_json::json!({
                "submitted": ok + 8, "ok": ok, "error": 1, "cancelled": 2, "expired": 0, "rejected": 0, "closed": 0
            })
        };
        serde_json::from_value(serde_json::json!({
            "program": "server\u{1b}[2J", "pid": 7, "time": 1e9, "uptime": uptime, "outcomes": outcomes(ok),
            "memory": 3 << 20, "memory_budget": 64 << 20,
            "models": [{
                "model": "digits#1", "version": 2, "path": "digits.mlpackage", "evicted": false, "memory": 3 << 20,
                "outcomes": outcomes(ok), "detached": 0, "depth": [1, 2, 0], "bytes": 0, "waiting": 4, "running": 1,
                "queue_time": { "buckets": [] }, "predict_time": { "buckets": [] },
                "total_time": { "buckets": buckets },
                "workers": [
                    { "state": "running", "busy": busy, "restarts": 0 },
                    { "state": "unstarted", "busy": 0.0, "restarts": 0 }
                ]
            }]
        }))
        .unwrap()
    }

    #[test]
    fn rates_and_quantiles_are_those_of_the_time_between() {
        let before = snapshot(10.0, 100, &[(1_000_000, 100)], 5.0);
        let now = snapshot(12.0, 300, &[(1_000_000, 101), (50_000_000, 199)], 6.5);
        let view = View::new(now.clone(), Some(&before));
        let Row { throughput, busy, p50, p99, .. } = &view.models[0];
        assert_eq!((*throughput, *busy, *p50, *p99), (100.0, 0.75, Some(0.05), Some(0.05)));

        // Alone, or after another program at the same address: those of its life.
        let mut other = before;
        other.pid = 8;
        for view in [View::new(now.clone(), Some(&other)), View::new(now.clone(), None)] {
            assert_eq!(view.models[0].throughput, 25.0);
            assert_eq!(view.models[0].p50, Some(0.05));
        }
        // Nothing came: there is nothing to divide.
        let view = View::new(now.clone(), Some(&now));
        assert_eq!((view.models[0].throughput, view.models[0].p99), (0.0, None));
    }

    #[test]
    fn the_table_shows_every_figure_and_no_control_characters() {
        let view = View::new(snapshot(3_725.0, 300, &[(1_500, 300)], 1.0), None);
        let text = render(&view, 500);
        let expected = "\
server?[2J (process 7), up 1:02:05, memory 3.0 MiB of 64.0 MiB
model                        answer/s       p50       p99 hi/norm/low wait  run        ok  error cancel expire reject closed   threads  busy    memory
digits#1 v2                       0.1    1.5 µs    1.5 µs       1/2/0    4    1       300      1      2      0      0      0    1 of 1    0%   3.0 MiB
";
        assert_eq!(text, expected);
        assert!(render(&view, 40).lines().all(|line| line.chars().count() <= 40));
        assert!(!render(&view, 0).contains("digits"));
    }
}
