//! The cache of compiled models, on a bridge whose compiler counts: in one process and in two, with processes that die in
//! between and entries that somebody has spoilt.

#![allow(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use coreml_client::{
    CompiledCache, Config, Error, Features, InferenceRequest, LoadStage, ModelClient, ModelRef, Tensor,
};
use coreml_testing::FakeBridge;

/// A compiler, and what it has done.
#[derive(Clone, Default)]
struct Compiler {
    compiled: Arc<AtomicUsize>,
}

impl Compiler {
    fn count(&self) -> usize {
        self.compiled.load(Ordering::SeqCst)
    }

    /// A client whose bridge compiles with this, and does `work` half-way.
    fn client(
        &self,
        cache: CompiledCache,
        work: impl Fn() + Send + Sync + 'static,
    ) -> (FakeBridge, ModelClient) {
        let compiled = Arc::clone(&self.compiled);
        let fake = FakeBridge::builder()
            .compile(move |source, folder| {
                compiled.fetch_add(1, Ordering::SeqCst);
                let words = |error: std::io::Error| error.to_string();
                let made = folder.join("made.mlmodelc");
                fs::create_dir(&made).map_err(words)?;
                let mut file = fs::File::create(made.join("weights")).map_err(words)?;
                file.write_all(b"half of ").map_err(words)?;
                work();
                file.write_all(&fs::read(source).map_err(words)?).map_err(words)?;
                Ok(made)
            })
            .build();
        (fake, ModelClient::builder().bridge(fake.bridge()).threads(1).compiled_cache(cache).build())
    }
}

fn model(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, content).unwrap();
    path
}

fn load(client: &ModelClient, path: &Path) -> ModelRef {
    let model_ref = client.load_model(path).unwrap();
    let features = Features::new().with("x", Tensor::from_vec(&[1], vec![1.0_f32]).unwrap());
    pollster::block_on(client.enqueue_inference(InferenceRequest::new(model_ref, features))).unwrap();
    model_ref
}

/// The entries of a cache.
fn entries(cache: &Path) -> Vec<PathBuf> {
    let Ok(list) = fs::read_dir(cache) else { return Vec::new() };
    list.map(|item| item.unwrap().path())
        .filter(|path| path.is_dir() && path.file_name().unwrap().len() == 64)
        .collect()
}

/// What is there beside entries and locks.
fn litter(cache: &Path) -> Vec<PathBuf> {
    let list = fs::read_dir(cache).unwrap().map(|item| item.unwrap().path());
    list.filter(|path| path.is_dir() && path.file_name().unwrap().len() != 64).collect()
}

/// Unloads a model, and waits until its entry is not in use any more.
fn unload(client: &ModelClient, model_ref: ModelRef, cache: &Path) {
    let in_use = || {
        let list = fs::read_dir(cache).unwrap().map(|item| item.unwrap().path());
        let locks = list.filter(|path| path.extension().is_some_and(|extension| extension == "use"));
        locks.filter(|path| fs::File::open(path).unwrap().try_lock().is_err()).count()
    };
    let before = in_use();
    client.unload(model_ref).unwrap();
    let start = Instant::now();
    while in_use() >= before {
        assert!(start.elapsed() < Duration::from_secs(30), "the entry stays in use");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_model_is_compiled_once_for_its_content() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let compiler = Compiler::default();
    let path = model(folder.path(), "model.mlmodel", b"content");
    for _ in 0..3 {
        let (_, client) = compiler.client(CompiledCache::new(&cache), || ());
        load(&client, &path);
    }
    assert_eq!(compiler.count(), 1);

    // The same content elsewhere, under the same name, is the same.
    let elsewhere = folder.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let (_, client) = compiler.client(CompiledCache::new(&cache), || ());
    load(&client, &model(&elsewhere, "model.mlmodel", b"content"));
    assert_eq!(compiler.count(), 1);
    // Other content is not, in the place of the old one either, nor when its length is the same.
    load(&client, &model(folder.path(), "model.mlmodel", b"CONTENT"));
    assert_eq!((compiler.count(), entries(&cache).len()), (2, 2));
    // A compiled model needs nothing.
    let compiled = folder.path().join("done.mlmodelc");
    fs::create_dir(&compiled).unwrap();
    client.load_model(&compiled).unwrap();
    assert_eq!(compiler.count(), 2);
    assert_eq!(litter(&cache), [] as [PathBuf; 0]);
}

#[test]
fn a_load_tells_that_it_compiles_and_only_then() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let path = model(folder.path(), "model.mlmodel", b"content");
    let seen = |compiler: &Compiler| {
        // Half-way through, so that the stage lasts until somebody has looked.
        let (looked, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        let (_, client) = compiler.client(CompiledCache::new(&cache), move || {
            wait.lock().unwrap().recv_timeout(Duration::from_secs(30)).unwrap();
        });
        let load = client.load(&path);
        let mut stages = load.stages();
        let watcher = thread::spawn(move || {
            pollster::block_on(async {
                let mut seen = Vec::new();
                while stages.changed().await.is_ok() {
                    let stage = *stages.borrow_and_update();
                    seen.push(stage);
                    if stage == LoadStage::Compiling {
                        looked.send(()).unwrap();
                    }
                }
                seen
            })
        });
        pollster::block_on(load).unwrap();
        watcher.join().unwrap()
    };
    let compiler = Compiler::default();
    let first = seen(&compiler);
    assert!(first.contains(&LoadStage::Compiling) && first.is_sorted(), "{first:?}");
    let second = seen(&compiler);
    assert!(!second.contains(&LoadStage::Compiling), "{second:?}");
    assert_eq!((second.last(), compiler.count()), (Some(&LoadStage::Ready), 1));
}

#[test]
fn another_build_of_the_system_compiles_anew() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/digits/digits.mlmodel");
    let compiler = Compiler::default();
    let (_, client) = compiler.client(CompiledCache::new(&cache), || ());
    load(&client, Path::new(path));
    // Another bridge, with a version of its own, and no use for what the first one made.
    let other = ModelClient::builder().compiled_cache(CompiledCache::new(&cache)).build();
    let model_ref = other.load_model(path).unwrap();
    assert!(other.description(model_ref).unwrap().input("image").is_some());
    assert_eq!(entries(&cache).len(), 2);
}

#[test]
fn a_spoilt_entry_is_made_again() {
    let spoil: [(&str, fn(&Path)); 7] = [
        ("a bit", |entry| {
            let path = entry.join("model/made.mlmodelc/weights");
            let mut bytes = fs::read(&path).unwrap();
            bytes[3] ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        ("the end", |entry| fs::write(entry.join("model/made.mlmodelc/weights"), b"half of ").unwrap()),
        ("a file more", |entry| fs::write(entry.join("model/made.mlmodelc/more"), b"").unwrap()),
        ("no file", |entry| fs::remove_file(entry.join("model/made.mlmodelc/weights")).unwrap()),
        ("no list", |entry| fs::remove_file(entry.join("entry")).unwrap()),
        ("rubbish", |entry| fs::write(entry.join("entry"), [0xff; 10_000]).unwrap()),
        ("a way out", |entry| {
            let text = fs::read_to_string(entry.join("entry")).unwrap();
            fs::write(entry.join("entry"), text.replacen("made.mlmodelc", "../model/made.mlmodelc", 1))
                .unwrap();
        }),
    ];
    for (what, spoil) in spoil {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("cache");
        let compiler = Compiler::default();
        let path = model(folder.path(), "model.mlmodel", b"content");
        let (_, client) = compiler.client(CompiledCache::new(&cache), || ());
        unload(&client, load(&client, &path), &cache);
        spoil(&entries(&cache)[0]);

        let (_, client) = compiler.client(CompiledCache::new(&cache), || ());
        load(&client, &path);
        assert_eq!(compiler.count(), 2, "{what}");
        let [entry] = &entries(&cache)[..] else { panic!("{what}: one entry") };
        assert_eq!(
            fs::read(entry.join("model/made.mlmodelc/weights")).unwrap(),
            b"half of content",
            "{what}"
        );
        assert_eq!(litter(&cache), [] as [PathBuf; 0], "{what}");
    }
}

#[test]
fn a_spoilt_entry_that_is_in_use_is_left_alone_and_gone_without() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let compiler = Compiler::default();
    let path = model(folder.path(), "model.mlmodel", b"content");
    let (_, user) = compiler.client(CompiledCache::new(&cache), || ());
    load(&user, &path);
    let entry = entries(&cache).remove(0);
    fs::write(entry.join("entry"), "spoilt").unwrap();
    let (_, client) = compiler.client(CompiledCache::new(&cache), || ());
    load(&client, &path);
    assert_eq!((compiler.count(), entries(&cache)), (1, vec![entry]));
}

#[test]
fn the_least_recently_used_goes_and_what_is_in_use_stays() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let compiler = Compiler::default();
    // Room for two: each is 8 and 100 bytes.
    let (_, client) = compiler.client(CompiledCache::new(&cache).capacity(250), || ());
    let path = |n: u8| model(folder.path(), &format!("{n}.mlmodel"), &[n; 100]);
    let pause = || thread::sleep(Duration::from_millis(20));

    let first = load(&client, &path(1));
    pause();
    for n in 2..5 {
        unload(&client, load(&client, &path(n)), &cache);
        pause();
    }
    assert_eq!((compiler.count(), entries(&cache).len()), (4, 2), "1 is in use, and 4 was the last");
    unload(&client, first, &cache);

    let (_, client) = compiler.client(CompiledCache::new(&cache).capacity(250), || ());
    unload(&client, load(&client, &path(4)), &cache);
    pause();
    unload(&client, load(&client, &path(1)), &cache);
    assert_eq!(compiler.count(), 4, "both are still there");
    pause();
    unload(&client, load(&client, &path(5)), &cache);
    unload(&client, load(&client, &path(1)), &cache);
    assert_eq!(compiler.count(), 5, "4 went to make room for 5");
    unload(&client, load(&client, &path(4)), &cache);
    assert_eq!(compiler.count(), 6);
    assert_eq!(litter(&cache), [] as [PathBuf; 0]);
}

#[test]
fn whatever_is_wrong_with_the_cache_models_load() {
    let folder = tempfile::tempdir().unwrap();
    let path = model(folder.path(), "model.mlmodel", b"content");
    let compiler = Compiler::default();
    // It is no folder.
    let file = model(folder.path(), "file", b"");
    load(&compiler.client(CompiledCache::new(&file), || ()).1, &path);
    // The source changes while it is compiled: nobody knows what was compiled.
    let cache = folder.path().join("cache");
    let changing = path.clone();
    let change = move || fs::write(&changing, b"something else").unwrap();
    load(&compiler.client(CompiledCache::new(&cache), change).1, &path);
    assert!(entries(&cache).is_empty());
    // The compiler refuses, or says what is not so: the loader decides.
    for made in [Err("no"), Ok("/nowhere.mlmodelc"), Ok("made.mlmodelc")] {
        let fake = FakeBridge::builder()
            .compile(move |_, folder| made.map(|path| folder.join(path)).map_err(str::to_owned))
            .build();
        let cache = CompiledCache::new(&cache);
        load(&ModelClient::builder().bridge(fake.bridge()).threads(1).compiled_cache(cache).build(), &path);
    }
    assert!(entries(&cache).is_empty());
    assert_eq!(litter(&cache), [] as [PathBuf; 0]);
    // What is not there is not there with a cache either.
    let fake = FakeBridge::builder().describe(|_| None).build();
    let client =
        ModelClient::builder().bridge(fake.bridge()).compiled_cache(CompiledCache::new(&cache)).build();
    assert!(matches!(client.load_model(folder.path().join("absent.mlmodel")), Err(Error::Load { .. })));
}

#[test]
fn an_entry_that_does_not_load_goes_if_its_source_does() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let path = model(folder.path(), "model.mlmodel", b"content");
    let client = |loads: fn(&str) -> bool| {
        let description = r#"{ "inputs": [], "outputs": [], "functions": ["main"], "function": "main" }"#;
        let fake = FakeBridge::builder()
            .describe(move |path| loads(path).then(|| description.to_owned()))
            .compile(|source, folder| {
                let made = folder.join("made.mlmodelc");
                let copied = fs::create_dir(&made).and_then(|()| fs::copy(source, made.join("weights")));
                copied.map(|_| made).map_err(|error| error.to_string())
            })
            .build();
        let cache = CompiledCache::new(&cache);
        ModelClient::builder().bridge(fake.bridge()).threads(1).compiled_cache(cache).build()
    };
    client(|path| !path.ends_with(".mlmodelc")).load_model(&path).unwrap();
    assert!(entries(&cache).is_empty(), "it was the entry");
    // A configuration that neither has is no fault of the entry.
    let config = Config { function: Some("another".to_owned()), ..Config::default() };
    let error = client(|_| true).load_model_with(&path, config).unwrap_err();
    assert!(matches!(error, Error::Load { .. }), "{error:?}");
    assert_eq!(entries(&cache).len(), 1);
}

#[test]
fn threads_that_ask_at_once_share_one_compilation() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let compiler = Compiler::default();
    let path = model(folder.path(), "model.mlmodel", b"content");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                // Each with a runtime of its own: they meet at the files only.
                let slow = || thread::sleep(Duration::from_millis(100));
                load(&compiler.client(CompiledCache::new(&cache), slow).1, &path);
            });
        }
    });
    assert_eq!(compiler.count(), 1);
}

/// Runs `child` below in another process.
fn spawn(folder: &Path, role: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--ignored", "--nocapture"])
        .env("COREML_TEST_FOLDER", folder)
        .env("COREML_TEST_ROLE", role)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "the other process of the tests below"]
fn child() {
    let folder =
        PathBuf::from(std::env::var_os("COREML_TEST_FOLDER").expect("set by the test that runs this"));
    let role = std::env::var("COREML_TEST_ROLE").unwrap();
    let cache = CompiledCache::new(folder.join("cache"));
    let mark = folder.join(format!("compiled-{}", std::process::id()));
    let work = {
        let role = role.clone();
        move || {
            fs::write(&mark, b"").unwrap();
            match &*role {
                "dies" => std::process::abort(),
                _ => thread::sleep(Duration::from_millis(200)),
            }
        }
    };
    let (_fake, client) = Compiler::default().client(cache, work);
    load(&client, &folder.join("model.mlmodel"));
    if role == "stays" {
        fs::write(folder.join("ready"), b"").unwrap();
        thread::sleep(Duration::from_secs(60));
    }
}

fn marks(folder: &Path) -> usize {
    let list = fs::read_dir(folder).unwrap().map(|item| item.unwrap().file_name());
    list.filter(|name| name.to_string_lossy().starts_with("compiled-")).count()
}

#[test]
fn processes_that_ask_at_once_share_one_compilation() {
    let folder = tempfile::tempdir().unwrap();
    model(folder.path(), "model.mlmodel", b"content");
    let children: Vec<_> = (0..4).map(|_| spawn(folder.path(), "ends")).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(marks(folder.path()), 1);
    assert_eq!(entries(&folder.path().join("cache")).len(), 1);
}

#[test]
fn a_process_that_dies_at_it_leaves_nothing_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let path = model(folder.path(), "model.mlmodel", b"content");
    assert!(!spawn(folder.path(), "dies").wait().unwrap().success());
    assert_eq!(
        (marks(folder.path()), entries(&cache).len(), litter(&cache).len()),
        (1, 0, 1),
        "it died half-way"
    );

    // Whoever loads another model clears up; and so does who makes the same.
    let compiler = Compiler::default();
    let (_, client) = compiler.client(CompiledCache::new(&cache), || ());
    load(&client, &model(folder.path(), "other.mlmodel", b"other"));
    assert_eq!(litter(&cache), [] as [PathBuf; 0]);
    assert!(!spawn(folder.path(), "dies").wait().unwrap().success());
    load(&client, &path);
    assert_eq!((compiler.count(), entries(&cache).len()), (2, 2));
    assert_eq!(litter(&cache), [] as [PathBuf; 0]);

    // As after a death between the move and the deletion of an entry.
    let gone = cache.join(format!("gone-{}-1", entries(&cache)[0].file_name().unwrap().to_str().unwrap()));
    fs::create_dir_all(gone.join("model")).unwrap();
    let (_, client) = compiler.client(CompiledCache::new(&cache), || ());
    load(&client, &path);
    assert_eq!(litter(&cache), [] as [PathBuf; 0]);
    assert_eq!(compiler.count(), 2);
}

#[test]
fn what_another_process_uses_is_not_evicted_until_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    model(folder.path(), "model.mlmodel", b"content");
    let mut user = spawn(folder.path(), "stays");
    let start = Instant::now();
    while !folder.path().join("ready").exists() {
        assert!(start.elapsed() < Duration::from_secs(30), "the child never loads its model");
        thread::sleep(Duration::from_millis(5));
    }
    let used = entries(&cache);
    let compiler = Compiler::default();
    let (_, client) = compiler.client(CompiledCache::new(&cache).capacity(0), || ());
    unload(&client, load(&client, &model(folder.path(), "other.mlmodel", b"other")), &cache);
    assert!(used[0].exists(), "in use");
    user.kill().unwrap();
    user.wait().unwrap();
    unload(&client, load(&client, &model(folder.path(), "third.mlmodel", b"third")), &cache);
    assert!(!used[0].exists(), "the system gave its lock back");
}
