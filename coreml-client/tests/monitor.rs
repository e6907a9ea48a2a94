//! The endpoint of a running program: what it tells, and that nobody who connects can disturb the program.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coreml_client::monitor::{Address, Monitor, Snapshot};
use coreml_client::{Features, InferenceRequest, ModelClient, ModelRef, Priority, Tensor, WorkerState};
use coreml_testing::FakeBridge;

const PATIENCE: Duration = Duration::from_secs(20);

fn request(model_ref: ModelRef) -> InferenceRequest {
    InferenceRequest::new(
        model_ref,
        Features::new().with("x", Tensor::from_vec(&[1], vec![1.0_f32]).unwrap()),
    )
}

fn tcp(monitor: &Monitor) -> SocketAddr {
    match monitor.address() {
        Address::Tcp(address) => *address,
        other => panic!("{other} is no TCP address"),
    }
}

/// The next picture that was not taken yet when this was called.
fn fresh(monitor: &Monitor) -> Snapshot {
    thread::sleep(Duration::from_millis(150));
    Snapshot::read(monitor.address(), PATIENCE).unwrap()
}

#[test]
fn it_tells_what_the_statistics_tell() {
    let fake = FakeBridge::new();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).memory_budget(1 << 20).build();
    let monitor = Monitor::start(&client, &"127.0.0.1:0".parse().unwrap()).unwrap();
    assert!(fresh(&monitor).models.is_empty());

    let source = coreml_client::ModelSource::new("folder/doubler.mlpackage").memory(1000);
    let model_ref = pollster::block_on(client.load(source)).unwrap();
    for _ in 0..10 {
        pollster::block_on(client.enqueue_inference(request(model_ref))).unwrap();
    }
    fake.predict_gate().close();
    let running = client.try_enqueue(request(model_ref)).unwrap();
    fake.predict_gate().await_waiting(1);
    let queued = client.try_enqueue(request(model_ref).priority(Priority::High)).unwrap();

    let snapshot = fresh(&monitor);
    let stats = client.stats();
    assert_eq!(snapshot.outcomes, stats.outcomes);
    assert_eq!((snapshot.memory, snapshot.memory_budget), (1000, Some(1 << 20)));
    let [model] = &snapshot.models[..] else { panic!("{snapshot:?}") };
    assert_eq!(model.model, format!("doubler#{}", model_ref.as_u64()));
    assert_eq!((model.version, model.memory, model.evicted), (1, 1000, false));
    assert_eq!((model.depth, model.running, model.waiting), ([1, 0, 0], 1, 0));
    assert_eq!((model.outcomes.submitted, model.outcomes.ok), (12, 10));
    assert_eq!(model.total_time.count(), 10);
    let exact = stats.models[0].total_time.quantile(0.5).as_secs_f64();
    let told = model.total_time.quantile(0.5).unwrap().as_secs_f64();
    assert!(told >= exact * 0.999 && told <= exact * 1.07, "{told} for {exact}");
    assert_eq!(model.workers.len(), 1);
    assert_eq!(model.workers[0].state, WorkerState::Running);

    fake.predict_gate().open();
    pollster::block_on(async { (running.await.unwrap(), queued.await.unwrap()) });
    let later = fresh(&monitor);
    let new = later.models[0].total_time.since(&snapshot.models[0].total_time);
    assert_eq!(new.count(), 2);
    assert!(later.time > snapshot.time && later.uptime > snapshot.uptime);
}

#[test]
fn only_this_machine_can_reach_it() {
    let client = ModelClient::builder().bridge(FakeBridge::new().bridge()).build();
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let error = Monitor::start(&client, &address.parse().unwrap()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{address}: {error}");
    }
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(taken.local_addr().unwrap());
    assert_eq!(Monitor::start(&client, &address).unwrap_err().kind(), ErrorKind::AddrInUse);
}

#[test]
fn callers_of_every_kind_leave_requests_and_other_callers_alone() {
    let fake = FakeBridge::new();
    let client = ModelClient::builder().bridge(fake.bridge()).threads(1).build();
    let model_ref = client.load_model("doubler.mlpackage").unwrap();
    let monitor = Monitor::start(&client, &"127.0.0.1:0".parse().unwrap()).unwrap();
    let address = tcp(&monitor);
    let stop = AtomicBool::new(false);
    let stop = &stop;
    thread::scope(|scope| {
        // Some never read and never go.
        let silent: Vec<_> = (0..40).map(|_| TcpStream::connect(address).unwrap()).collect();
        // Some talk without end.
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let Ok(mut stream) = TcpStream::connect(address) else { continue };
                stream.set_write_timeout(Some(Duration::from_millis(50))).unwrap();
                while stream.write_all(&[b'{'; 4096]).is_ok() && !stop.load(Ordering::Relaxed) {}
            }
        });
        // Some come and go.
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                drop(TcpStream::connect(address));
                thread::sleep(Duration::from_millis(1));
            }
        });
        // A request waits for no caller, and a patient caller gets the whole document.
        let start = Instant::now();
        let mut answered = 0;
        while start.elapsed() < Duration::from_secs(1) {
            pollster::block_on(client.enqueue_inference(request(model_ref))).unwrap();
            answered += 1;
        }
        let snapshot = Snapshot::read(monitor.address(), PATIENCE);
        stop.store(true, Ordering::Relaxed);
        assert!(snapshot.unwrap().outcomes.ok > 0);
        assert_eq!(client.stats().outcomes.ok, answered);
        drop(silent);
    });
    let start = Instant::now();
    drop(monitor);
    assert!(start.elapsed() < Duration::from_secs(5), "it does not wait for callers");
    assert!(TcpStream::connect(address).is_err(), "it is closed");
}

#[test]
fn it_does_not_keep_its_runtime_and_says_nothing_of_one_that_is_gone() {
    let fake = FakeBridge::new();
    let client = ModelClient::builder().bridge(fake.bridge()).build();
    client.load_model("doubler.mlpackage").unwrap();
    let monitor = Monitor::start(&client, &"127.0.0.1:0".parse().unwrap()).unwrap();
    drop(client);
    let start = Instant::now();
    while fake.counts().live_models > 0 {
        assert!(start.elapsed() < PATIENCE, "the runtime lives on");
        thread::sleep(Duration::from_millis(5));
    }
    let start = Instant::now();
    // Its last thread may hold the runtime for a moment longer.
    while Snapshot::read(monitor.address(), PATIENCE).is_ok() {
        assert!(start.elapsed() < PATIENCE, "it still tells something");
        thread::sleep(Duration::from_millis(50));
    }
    drop(monitor);
}

/// An endpoint that is none.
fn impostor(speak: impl FnOnce(TcpStream) + Send + 'static) -> Address {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || speak(listener.accept().unwrap().0));
    Address::Tcp(address)
}

#[test]
fn whoever_asks_an_impostor_gets_an_error_in_time() {
    let read = |address: &Address, timeout| Snapshot::read(address, timeout).unwrap_err().kind();
    let silent = impostor(|mut stream| drop(stream.read(&mut [0])));
    assert_eq!(read(&silent, Duration::from_millis(50)), ErrorKind::TimedOut);
    // A byte now and then does not prolong it.
    let slow = impostor(|mut stream| {
        while stream.write_all(b" ").is_ok() {
            thread::sleep(Duration::from_millis(10));
        }
    });
    let start = Instant::now();
    assert_eq!(read(&slow, Duration::from_millis(200)), ErrorKind::TimedOut);
    assert!(start.elapsed() < Duration::from_secs(10));
    let endless = impostor(|mut stream| while stream.write_all(&[b'['; 1 << 16]).is_ok() {});
    assert_eq!(read(&endless, PATIENCE), ErrorKind::InvalidData);
    let nested = impostor(|mut stream| stream.write_all(&[b'['; 1 << 16]).unwrap());
    assert_eq!(read(&nested, PATIENCE), ErrorKind::InvalidData);
    let other = impostor(|mut stream| stream.write_all(b"{\"pid\": 1}\n").unwrap());
    assert_eq!(read(&other, PATIENCE), ErrorKind::InvalidData);
}

#[cfg(unix)]
#[test]
fn a_socket_is_its_users_own_and_replaces_only_a_dead_one() {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("program.sock");
    let address: Address = path.to_str().unwrap().parse().unwrap();
    let client = ModelClient::builder().bridge(FakeBridge::new().bridge()).build();

    // As a program leaves it that was killed.
    drop(UnixListener::bind(&path).unwrap());
    let monitor = Monitor::start(&client, &address).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fresh(&monitor).pid, std::process::id());
    assert_eq!(Monitor::start(&client, &address).unwrap_err().kind(), ErrorKind::AddrInUse);
    assert_eq!(fresh(&monitor).pid, std::process::id(), "the one that lives was left alone");
    drop(monitor);
    assert!(!path.exists());

    std::fs::write(&path, "somebody's notes").unwrap();
    assert_eq!(Monitor::start(&client, &address).unwrap_err().kind(), ErrorKind::AddrInUse);
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "somebody's notes");
    std::fs::remove_file(&path).unwrap();

    // The file of another is not removed.
    let monitor = Monitor::start(&client, &address).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "somebody's notes").unwrap();
    drop(monitor);
    assert!(path.exists());
}
