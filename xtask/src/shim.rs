//! `cargo xtask shim`: everything about the Objective-C shim that can be shown without a Mac.
//!
//! The shim is compiled by clang on GNUstep against the Core ML work-alike of `bridge-objc/workalike`, and driven through
//! its table by `bridge-objc/tests/drive.c`: plain, under AddressSanitizer, with zombies. What it calls is compared with a
//! list made from Apple's headers. Then each check is put to the proof: faults are planted one by one, and each must be
//! caught by the check that is there for it. A plant that survives, or no longer applies, fails the verb.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// Runs all checks; with `known`, writes the list of Apple's declarations anew instead, from the `objc2` crates whose
/// unpacked sources are in that folder.
///
/// # Errors
///
/// When a check fails, a planted fault survives, or clang or GNUstep is missing.
pub(crate) fn run(root: &Path, known: Option<&Path>) -> Result<()> {
    let shim = Shim::new(root)?;
    if let Some(crates) = known {
        return write_known(&shim, crates);
    }
    let start = Instant::now();
    let mut report = Report::default();
    report.step("the header is C11, C++17 and Objective-C, without a warning", || check_header(&shim))?;
    report.step("every call and number is in Apple's headers", || check_calls(&shim, &shim.sources()))?;
    let plain = report.step("it compiles with -Wall -Wextra -Werror", || shim.build(Sanitizer::None))?;
    let address = report.step("... and with AddressSanitizer", || shim.build(Sanitizer::Address))?;
    report.step("C++ exceptions go where the README says", || check_foreign(&shim, &plain))?;
    report.step("the example in C runs on the shim", || check_example(&shim, &plain))?;
    // At once: drivers wait, for releases and answers that come late, most of their time.
    let both = "clang's analyzer finds no leak and no over-release; the driver passes, plain, under AddressSanitizer \
                and with zombies";
    report.step(both, || {
        let ways = [(&plain, Way::Plain), (&address, Way::Address), (&plain, Way::Zombies)];
        std::thread::scope(|scope| {
            let running = ways.map(|(driver, way)| scope.spawn(move || drive(driver, way, "").map(drop)));
            let analyzed = analyze(&shim, &shim.sources());
            running.into_iter().try_for_each(|one| one.join().expect("driving does not panic"))?;
            analyzed
        })
    })?;
    // Not part of the time: what cargo builds for it has its own.
    let (built, before) = (Instant::now(), worked());
    let programs = build_programs(root)?;
    let (building, compiling) = (built.elapsed(), before.zip(worked()).map(|(before, after)| after - before));
    report.step(
        "the suites of all bridges, the bridge's and the client's, pass on shim, engine and fake",
        || check_suites(root, &programs),
    )?;
    let caught = Mutex::new(Vec::new());
    report
        .step("it answers as the engine does, on every committed model", || check_answers(root, &programs))?;
    report.step("each planted fault is caught", || {
        side_by_side(PLANTS, |worker, plant| {
            let start = Instant::now();
            let title = format!("planted: {} ({})", plant.name, plant.caught_by.name());
            let folder = shim.work.join(format!("planted-{worker}"));
            let outcome = plant.must_be_caught(&shim, &plain, &address, &folder);
            outcome.with_context(|| title.clone())?;
            caught.lock().unwrap_or_else(PoisonError::into_inner).push((title, start.elapsed()));
            Ok(())
        })
    })?;
    report.rows.extend(caught.into_inner().unwrap_or_else(PoisonError::into_inner));
    report.print();
    let took = start.elapsed().saturating_sub(building);
    println!(
        "in all {:.0} s, without {:.0} s for building the suites",
        took.as_secs_f64(),
        building.as_secs_f64()
    );
    // The machine's own time, so that other work on it does not make the verb fail.
    if let Some((all, building)) = worked().zip(compiling) {
        let worked = all.saturating_sub(building);
        let cores = std::thread::available_parallelism().map_or(1, usize::from).min(2);
        println!("{:.0} s of work, of which {cores} cores do as much at once", worked.as_secs_f64());
        ensure!(worked <= LIMIT * u32::try_from(cores)?, "the shim's checks take more than {LIMIT:?}");
    }
    Ok(())
}

/// What the checks may take on two cores that have nothing else to do, with what is built for them.
const LIMIT: Duration = Duration::from_secs(180);

/// The processor time of all programs that were run, as far as the system tells (Linux: `proc(5)`, in ticks of 10 ms).
fn worked() -> Option<Duration> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = |field: usize| fields.get(field)?.parse::<u64>().ok();
    Some(Duration::from_millis(10 * (ticks(13)? + ticks(14)?)))
}

/// What was shown, and how long it took.
#[derive(Default)]
struct Report {
    rows: Vec<(String, Duration)>,
}

impl Report {
    fn step<T>(&mut self, what: &str, check: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        let outcome = check().with_context(|| format!("shim: not so: {what}"))?;
        self.rows.push((what.to_owned(), start.elapsed()));
        Ok(outcome)
    }

    fn print(&self) {
        let width = self.rows.iter().map(|(what, _)| what.chars().count()).max().unwrap_or(0);
        println!("{:width$}   seconds", "shown");
        for (what, time) in &self.rows {
            println!("{what:width$}   {:7.1}", time.as_secs_f64());
        }
    }
}

// ---- compiling ----

/// Where things are, and with what they are compiled.
struct Shim {
    /// `bridge-objc`.
    home: PathBuf,
    /// A folder of ours in `target`.
    work: PathBuf,
    clang: String,
    /// Of the Objective-C files.
    flags: Vec<String>,
}

#[derive(Clone, Copy, PartialEq)]
enum Sanitizer {
    None,
    Address,
}

impl Sanitizer {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Sanitizer::None => &[],
            Sanitizer::Address => {
                &["-fsanitize=address,undefined", "-fno-omit-frame-pointer", "-fno-sanitize-recover"]
            }
        }
    }
}

/// A built driver: its object files by the name of their source, and the program.
struct Driver {
    sanitizer: Sanitizer,
    objects: BTreeMap<String, PathBuf>,
    program: PathBuf,
}

impl Shim {
    fn new(root: &Path) -> Result<Shim> {
        let named = std::env::var("COREML_SYS_CLANG").ok();
        let candidates = ["clang", "clang-19", "clang-16", "clang-14"].map(String::from);
        let clang = named
            .into_iter()
            .chain(candidates)
            .find(|clang| {
                Command::new(clang).arg("--version").output().is_ok_and(|output| output.status.success())
            })
            .context("clang is missing: apt-get install clang libgnustep-base-dev libblocksruntime-dev")?;
        let home = root.join("bridge-objc");
        let work = root.join("target").join("shim");
        fs::create_dir_all(&work)?;

        // Only `objc/` of GCC's headers: its other headers would come before clang's own.
        let include = output(Command::new("cc").arg("-print-file-name=include"))?;
        let headers = work.join("gcc");
        fs::create_dir_all(headers.join("objc"))?;
        let objc = Path::new(include.trim()).join("objc");
        let missing = "GCC's Objective-C headers are missing: apt-get install libgnustep-base-dev";
        for header in fs::read_dir(&objc).context(missing)? {
            let header = header?;
            fs::copy(header.path(), headers.join("objc").join(header.file_name()))?;
        }

        let mut flags: Vec<String> = fs::read_to_string(home.join("workalike/flags.txt"))?
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(String::from)
            .collect();
        flags.extend(["-isystem".to_owned(), text(&headers)?]);
        Ok(Shim { home, work, clang, flags })
    }

    /// The Objective-C files of the shim itself.
    fn sources(&self) -> Vec<PathBuf> {
        files(&self.home.join("src"), "m")
    }

    /// clang, in `bridge-objc`, to which the flags are relative.
    fn clang(&self) -> Command {
        let mut command = Command::new(&self.clang);
        command.current_dir(&self.home);
        command
    }

    fn compile(&self, source: &Path, object: &Path, sanitizer: Sanitizer) -> Result<()> {
        let mut command = self.clang();
        if source.extension().is_some_and(|extension| extension == "c") {
            command.args([
                "-std=gnu11",
                "-Wall",
                "-Wextra",
                "-Wpedantic",
                "-Werror",
                "-Iinclude",
                "-Iworkalike",
                "-Itests",
            ]);
        } else {
            // A planted copy finds its header beside itself, or else here.
            command.args(&self.flags).arg("-Isrc");
        }
        command.args(["-g", "-O1"]).args(sanitizer.flags()).arg("-c").arg(source).arg("-o").arg(object);
        output(&mut command).map(drop)
    }

    fn link(&self, objects: &BTreeMap<String, PathBuf>, program: &Path, sanitizer: Sanitizer) -> Result<()> {
        let mut command = self.clang();
        command.args(sanitizer.flags()).args(objects.values()).arg("-o").arg(program);
        // BlocksRuntime before GNUstep, which exports a `_Block_copy` that does not work.
        output(command.args(["-lBlocksRuntime", "-lgnustep-base", "-lobjc", "-lpthread", "-lm"])).map(drop)
    }

    fn build(&self, sanitizer: Sanitizer) -> Result<Driver> {
        let name = if sanitizer == Sanitizer::None { "plain" } else { "address" };
        let folder = self.work.join(name);
        fs::create_dir_all(&folder)?;
        let mut sources = self.sources();
        sources.extend(files(&self.home.join("workalike"), "m"));
        sources.extend(files(&self.home.join("tests"), "c"));
        let mut objects = BTreeMap::new();
        for source in sources {
            let name = file_name(&source)?;
            let object = folder.join(format!("{name}.o"));
            self.compile(&source, &object, sanitizer)?;
            objects.insert(name, object);
        }
        let program = folder.join("drive");
        self.link(&objects, &program, sanitizer)?;
        Ok(Driver { sanitizer, objects, program })
    }
}

fn check_header(shim: &Shim) -> Result<()> {
    let strict = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only"];
    let compilers: [(&str, &[&str]); 5] = [
        ("cc", &["-std=c11", "-x", "c"]),
        ("c++", &["-std=c++17", "-x", "c++"]),
        (&shim.clang, &["-std=c11", "-x", "c"]),
        (&shim.clang, &["-std=c++17", "-x", "c++"]),
        (&shim.clang, &["-std=c11", "-x", "objective-c"]),
    ];
    // Through a file that includes it twice, as a user would: alone it is a "main file" with a pragma or two less.
    let user = shim.work.join("header.c");
    fs::write(&user, "#include \"coreml_bridge.h\"\n#include \"coreml_bridge.h\"\nint cml_header_user;\n")?;
    for (compiler, language) in compilers {
        let include = shim.home.join("include");
        output(Command::new(compiler).args(strict).arg("-I").arg(include).args(language).arg(&user))?;
    }
    Ok(())
}

/// Builds a program on the shim and the work-alike, without the driver, and runs it.
fn run_on(
    shim: &Shim,
    plain: &Driver,
    compiler: &str,
    sources: &[&Path],
    given: (&[&str], &str),
) -> Result<String> {
    let program = shim.work.join(file_name(sources[0])?).with_extension("program");
    let mut command = Command::new(compiler);
    command.current_dir(&shim.home).args([
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Iinclude",
        "-Iworkalike",
        "-Itests",
    ]);
    command.args(["-DPREDICT_WITH_COREML"]).args(sources);
    command.args(plain.objects.iter().filter(|(name, _)| *name != "drive.c").map(|(_, object)| object));
    command.arg("-o").arg(&program);
    output(command.args(["-lBlocksRuntime", "-lgnustep-base", "-lobjc", "-lpthread", "-lm"]))?;
    let (arguments, input) = given;
    let numbers = shim.work.join("input");
    fs::write(&numbers, input)?;
    output(Command::new("timeout").arg("100").arg(&program).args(arguments).stdin(fs::File::open(&numbers)?))
}

/// GNU's runtime lets nobody catch a C++ exception in Objective-C; should that change, so must what is written about it.
fn check_foreign(shim: &Shim, plain: &Driver) -> Result<()> {
    let source = shim.home.join("tests/foreign.cc");
    let said = run_on(shim, plain, "c++", &[&source], (&[], ""))?;
    ensure!(said.trim() == "it has passed through the shim", "GNU's runtime does otherwise now: {said}");
    Ok(())
}

/// `examples/predict.c` as it is built on a Mac, with the driver's delegate under the work-alike.
fn check_example(shim: &Shim, plain: &Driver) -> Result<()> {
    let delegate = shim.work.join("delegated.c");
    fs::write(
        &delegate,
        "#include \"cml_workalike.h\"\n#include \"delegate.h\"\n\
         __attribute__((constructor)) static void delegated(void) {\n  \
         cml_workalike_set_delegate(cml_test_delegate());\n}\n",
    )?;
    let model = shim.work.join("example.mlmodel");
    fs::write(&model, "double it")?;
    let example = shim.home.join("examples/predict.c");
    let arguments = [&text(&model)?, "x", "2", "3"];
    let said = run_on(shim, plain, &shim.clang, &[&example, &delegate], (&arguments, "1 2 3 4 5 6"))?;
    ensure!(said.contains("out_x: 2 4 6 8 10 12"), "the example says {said}");
    Ok(())
}

fn analyze(shim: &Shim, sources: &[PathBuf]) -> Result<()> {
    let analyze_one = |source: &PathBuf| {
        let mut command = shim.clang();
        command.args(&shim.flags).args(["-Isrc", "--analyze", "-Xclang", "-analyzer-checker=osx,osx.cocoa"]);
        command.args(["-Xclang", "-analyzer-werror", "-Xclang", "-analyzer-output=text"]);
        output(command.arg(source).args(["-o", "/dev/null"])).map(drop)
    };
    // The slowest of the checks; the longest first, so that none is left for the end.
    let length = |source: &PathBuf| fs::metadata(source).map_or(0, |about| about.len());
    let mut sources = sources.to_vec();
    sources.sort_by_key(|source| std::cmp::Reverse(length(source)));
    side_by_side(&sources, |_, source| analyze_one(source))
}

// ---- driving ----

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Plain,
    Address,
    Zombies,
}

/// The driver's output; an error when it fails.
fn drive(driver: &Driver, way: Way, tests: &str) -> Result<String> {
    let mut command = Command::new("timeout");
    command.arg("300").arg(&driver.program);
    if !tests.is_empty() {
        command.arg(tests);
    }
    command.env_remove("CML_WORKALIKE_HOSTILE").env_remove("CML_DRIVE_FOLDER");
    match way {
        Way::Plain => {}
        // GNUstep leaks enough of its own to drown LeakSanitizer; live objects are counted instead.
        Way::Address => {
            command.env(
                "ASAN_OPTIONS",
                "detect_leaks=0:allocator_may_return_null=1:abort_on_error=0:max_free_fill_size=0",
            );
            command.env("UBSAN_OPTIONS", "print_stacktrace=1");
        }
        Way::Zombies => {
            command.env("NSZombieEnabled", "YES").env("CRASH_ON_ZOMBIE", "YES");
        }
    }
    let said = output(&mut command)?;
    // A process that ends early may end with success.
    if said.contains("all is well") {
        Ok(said)
    } else {
        Err(anyhow::Error::new(Failed(format!("the driver did not come to its end:\n{said}"))))
    }
}

// ---- the suite of all bridges ----

/// The tests of a file of `coreml-bridge/tests`, by the module that they are in (empty: none).
fn listed(listing: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut mounts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for test in listing.lines().filter_map(|line| line.strip_suffix(": test")) {
        let (mount, name) = test.rsplit_once("::").unwrap_or(("", test));
        mounts.entry(mount.to_owned()).or_default().insert(name.to_owned());
    }
    mounts
}

/// The tests that a suite declares.
fn declared(suite: &str) -> BTreeSet<String> {
    let functions = suite.lines().filter_map(|line| line.strip_prefix("pub(crate) "));
    let functions = functions.map(|line| line.strip_prefix("async ").unwrap_or(line));
    let declarations = functions.filter_map(|line| line.strip_prefix("fn "));
    let tests = declarations.filter_map(|line| line.strip_suffix("(subject: &Subject) {"));
    tests.map(str::to_owned).collect()
}

/// A suite is the same for every bridge: each of its files runs all of it, as often as it says.
const SUITES: [(&str, &[(&str, usize)]); 2] = [
    ("coreml-bridge", &[("suite_portable", 1), ("suite_fake", 2), ("suite_objc", 2)]),
    ("coreml-client", &[("suite_portable", 1), ("suite_fake", 2), ("suite_objc", 2)]),
];

/// What is missing where, one line each.
fn gaps(declared: &BTreeSet<String>, file: &str, mounts: usize, listing: &str) -> Vec<String> {
    let found = listed(listing);
    let mut gaps = Vec::new();
    if found.len() != mounts {
        gaps.push(format!("{file} runs the suite {} times, not {mounts}", found.len()));
    }
    for (mount, tests) in &found {
        gaps.extend(declared.difference(tests).map(|test| format!("{file} {mount}: `{test}` is not run")));
    }
    gaps
}

/// Programs that cargo built, by package and target.
type Programs = BTreeMap<(String, String), PathBuf>;

/// The package and the example that hold two bridges against one another.
const DIFFERENTIAL: (&str, &str) = ("coreml-testing", "differential");

/// Builds the files of all suites and [`DIFFERENTIAL`]. Of the whole workspace, so that features are those of its tests and nothing
/// below is built twice.
fn build_programs(root: &Path) -> Result<Programs> {
    let (package, example) = DIFFERENTIAL;
    let mut features = vec!["--features".to_owned(), format!("{package}/objc")];
    let mut files = BTreeSet::from(["objc"]);
    for (package, mounts) in SUITES {
        features.extend(["--features".to_owned(), format!("{package}/objc")]);
        files.extend(mounts.iter().map(|(file, _)| *file));
    }
    let mut tests = Command::new("cargo");
    tests.args(["test", "--no-run"]).args(files.iter().flat_map(|file| ["--test", file]));
    // By itself: beside tests, an example is built as a test, which has no `main` of its own.
    let mut examples = Command::new("cargo");
    examples.args(["build", "--example", example]);
    let mut programs = Programs::new();
    for mut cargo in [tests, examples] {
        cargo.current_dir(root).args(["--workspace", "--quiet", "--message-format=json"]).args(&features);
        for line in output(&mut cargo)?.lines() {
            let built: serde_json::Value = serde_json::from_str(line)?;
            let (package, file) = (built["manifest_path"].as_str(), built["target"]["name"].as_str());
            if let (Some(package), Some(file), Some(program)) = (package, file, built["executable"].as_str())
            {
                let package = Path::new(package).parent().context("a manifest is in a folder")?;
                programs.insert((file_name(package)?, file.to_owned()), PathBuf::from(program));
            }
        }
    }
    Ok(programs)
}

/// Asks the shim, and the engine that is behind its work-alike, the same.
fn check_answers(root: &Path, programs: &Programs) -> Result<()> {
    let (package, example) = DIFFERENTIAL;
    let program = programs.get(&(package.to_owned(), example.to_owned()));
    let program = program.with_context(|| format!("{package} has no example {example}"))?;
    let said = output(Command::new(program).current_dir(root).arg("--committed"))?;
    let summary = said.lines().last().unwrap_or_default();
    // That it succeeds is not enough: what runs nothing succeeds, too.
    ensure!(summary.contains(" the same"), "{example} compared nothing: {said}");
    Ok(())
}

/// Runs the suites on the shim, the engine and the fake; all must run all of them.
fn check_suites(root: &Path, programs: &Programs) -> Result<()> {
    let run = |package: &str, file: &str, arguments: &[&str]| {
        let program = programs.get(&(package.to_owned(), file.to_owned()));
        let program = program.with_context(|| format!("{package} has no tests {file}"))?;
        output(Command::new(program).current_dir(root.join(package)).args(arguments))
    };
    for (package, files) in SUITES {
        let suite = fs::read_to_string(root.join(package).join("tests/suite/mod.rs"))?;
        let declared = declared(&suite);
        ensure!(declared.len() > 20, "{package}: a suite of {} tests only is read wrongly", declared.len());
        for (file, mounts) in files {
            let gaps = gaps(&declared, file, *mounts, &run(package, file, &["--list"])?);
            ensure!(gaps.is_empty(), "{package}: {}", gaps.join("\n"));
            run(package, file, &[])?;
        }
    }
    run("coreml-bridge", "objc", &[]).map(drop)
}

// ---- what Apple declares ----

/// What `bridge-objc/workalike/apple_api.txt` holds.
#[derive(Default)]
struct Apple {
    /// Selectors of Core ML, by class or protocol.
    methods: BTreeMap<String, BTreeSet<String>>,
    /// Constants whose number is known.
    numbers: BTreeMap<String, i64>,
    /// Other constants, and functions.
    names: BTreeSet<String>,
    /// The selectors of Foundation that the shim uses.
    foundation: BTreeSet<String>,
}

/// Selectors of the root class, which are part of the runtime and in no framework's headers.
const ROOT_SELECTORS: [&str; 8] =
    ["alloc", "init", "new", "retain", "release", "autorelease", "class", "isKindOfClass:"];
/// Functions that Apple declares and Rust bindings leave out, for they retain and release by themselves.
const LEFT_OUT: [&str; 2] = ["CVPixelBufferRetain", "CVPixelBufferRelease"];

impl Apple {
    fn read(path: &Path) -> Result<Apple> {
        let mut apple = Apple::default();
        for line in fs::read_to_string(path)?.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["method", class, selector] => {
                    apple.methods.entry(class.to_owned()).or_default().insert(selector.to_owned());
                }
                ["number", name, number] => {
                    apple.numbers.insert(name.to_owned(), number.parse()?);
                }
                ["name", name] => {
                    apple.names.insert(name.to_owned());
                }
                ["foundation", selector] => {
                    apple.foundation.insert(selector.to_owned());
                }
                _ => bail!("{}: what is {line:?}?", path.display()),
            }
        }
        ensure!(
            apple.methods.contains_key("MLModel"),
            "{} has no MLModel: it was made wrongly",
            path.display()
        );
        Ok(apple)
    }

    fn has_selector(&self, selector: &str) -> bool {
        ROOT_SELECTORS.contains(&selector)
            || self.foundation.contains(selector)
            || self.methods.values().any(|selectors| selectors.contains(selector))
    }

    fn has_name(&self, name: &str) -> bool {
        self.names.contains(name) || self.numbers.contains_key(name) || LEFT_OUT.contains(&name)
    }
}

/// What a source of ours uses or declares, as clang understood it.
#[derive(Default)]
struct Used {
    selectors: BTreeSet<String>,
    /// Classes of Core ML that are sent a message.
    classes: BTreeSet<String>,
    /// Functions and constants of Core ML and Core Video.
    names: BTreeSet<String>,
}

/// A syntax tree as text, of the declarations whose name contains `filter`.
fn syntax_tree(shim: &Shim, source: &Path, filter: &str) -> Result<String> {
    let mut command = shim.clang();
    command.args(&shim.flags).args(["-Isrc", "-fsyntax-only", "-Xclang", "-ast-dump", "-Xclang"]);
    output(command.arg(format!("-ast-dump-filter={filter}")).arg(source))
}

fn is_apples(name: &str) -> bool {
    let cv = name.strip_prefix('k').unwrap_or(name);
    cv.starts_with("CV") || (name.starts_with("ML") && name.chars().nth(2).is_some_and(char::is_uppercase))
}

fn used_by(shim: &Shim, source: &Path) -> Result<Used> {
    let mut used = Used::default();
    for line in syntax_tree(shim, source, "cml_")?.lines() {
        if line.contains("ObjCMessageExpr") {
            let (_, rest) = line.split_once("selector=").context("a message without a selector")?;
            used.selectors.insert(rest.split(' ').next().unwrap_or(rest).to_owned());
            if let Some((_, class)) = rest.split_once("class='") {
                used.classes.insert(class.trim_end_matches('\'').to_owned());
            }
        } else if let Some((_, rest)) = line.split_once("DeclRefExpr") {
            // ... Function 0x1234 'CVPixelBufferCreate' '...'
            let kinds = [" Function 0x", " Var 0x", " EnumConstant 0x"];
            let declared = kinds.iter().find_map(|kind| rest.split_once(kind)).map(|(_, name)| name);
            if let Some(name) =
                declared.and_then(|rest| rest.split('\'').nth(1)).filter(|name| is_apples(name))
            {
                used.names.insert(name.to_owned());
            }
        }
    }
    Ok(used)
}

/// The shim's calls and the work-alike's declarations against Apple's.
fn check_calls(shim: &Shim, sources: &[PathBuf]) -> Result<()> {
    check_calls_in(shim, sources, &shim.home.join("workalike/CoreML.m"))
}

fn check_calls_in(shim: &Shim, sources: &[PathBuf], workalike: &Path) -> Result<()> {
    let apple = Apple::read(&shim.home.join("workalike/apple_api.txt"))?;
    let mut wrong = String::new();
    let mut seen = 0;
    for source in sources {
        let used = used_by(shim, source)?;
        let file = file_name(source)?;
        seen += used.selectors.len();
        for selector in used.selectors.iter().filter(|selector| !apple.has_selector(selector)) {
            writeln!(wrong, "{file}: Apple's headers have no selector {selector}")?;
        }
        for class in
            used.classes.iter().filter(|class| is_apples(class) && !apple.methods.contains_key(*class))
        {
            writeln!(wrong, "{file}: Apple's headers have no class {class}")?;
        }
        for name in used.names.iter().filter(|name| !apple.has_name(name)) {
            writeln!(wrong, "{file}: Apple's headers have no {name}")?;
        }
    }
    ensure!(seen > 100, "only {seen} selectors were found: clang's syntax tree is not read rightly");

    let (mut class, mut constant) = (None::<String>, None::<String>);
    let (mut methods, mut numbers) = (0, 0);
    for line in syntax_tree(shim, workalike, "ML")?.lines() {
        if line.starts_with("ObjCInterfaceDecl") || line.starts_with("ObjCProtocolDecl") {
            class = line.split(' ').next_back().map(String::from).filter(|name| is_apples(name));
            if let Some(name) = class.as_ref().filter(|name| !apple.methods.contains_key(*name)) {
                // An empty protocol declares nothing that could be wrong.
                if line.starts_with("ObjCInterfaceDecl") {
                    writeln!(wrong, "the work-alike's {name} is no class of Core ML")?;
                }
            }
        } else if !line.starts_with(['|', '`', ' ']) {
            class = None;
        }
        if let (Some(class), true) = (&class, line.contains("ObjCMethodDecl")) {
            let selector = line.split(" - ").nth(1).or_else(|| line.split(" + ").nth(1));
            let selector =
                selector.and_then(|rest| rest.split(' ').next()).context("a method without a selector")?;
            methods += 1;
            if !apple.methods.get(class).is_some_and(|selectors| selectors.contains(selector)) {
                writeln!(wrong, "the work-alike's {class} has {selector}, Apple's has not")?;
            }
        }
        if line.contains("EnumConstantDecl") {
            let before_type = line.split('\'').next().unwrap_or("").trim_end();
            constant = before_type.split(' ').next_back().map(String::from).filter(|name| is_apples(name));
        }
        if let (Some(name), Some((_, number))) = (&constant, line.split_once("-value: Int ")) {
            numbers += 1;
            if apple.numbers.get(name) != Some(&number.trim().parse()?) {
                writeln!(
                    wrong,
                    "the work-alike's {name} is {number}, Apple's {:?}",
                    apple.numbers.get(name)
                )?;
            }
            constant = None;
        }
    }
    ensure!(
        methods > 80 && numbers > 20,
        "only {methods} methods and {numbers} numbers of the work-alike were found"
    );
    if wrong.is_empty() { Ok(()) } else { Err(anyhow::Error::new(Failed(wrong))) }
}

// ---- the list, made anew ----

/// `MLFeatureType(0x10000 | 64)` and the like.
fn number(expression: &str) -> Option<i64> {
    expression.split('|').try_fold(0, |sum, part| {
        let part = part.trim().replace('_', "");
        let value = match part.strip_prefix("0x") {
            Some(digits) => i64::from_str_radix(digits, 16).ok()?,
            None => part.parse().ok()?,
        };
        Some(sum | value)
    })
}

/// Reads one generated source of an `objc2` crate.
fn read_generated(source: &str, apple: &mut Apple, selectors: &mut BTreeSet<String>) {
    let (mut class, mut alias) = (String::new(), None::<String>);
    let word =
        |text: &str| text.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("").to_owned();
    for line in source.lines().map(str::trim) {
        if let Some(rest) =
            line.strip_prefix("pub struct ").or_else(|| line.strip_prefix("pub unsafe trait "))
        {
            class = word(rest);
            if !line.contains('(') && is_apples(&class) {
                apple.methods.entry(class.clone()).or_default();
            }
        } else if let Some(rest) = line.strip_prefix("impl ") {
            class = word(rest);
        } else if let Some(rest) = line.strip_prefix("#[unsafe(method(") {
            let selector = rest.split(')').next().unwrap_or("").trim_end_matches('_').to_owned();
            selectors.insert(selector.clone());
            if is_apples(&class) {
                apple.methods.entry(class.clone()).or_default().insert(selector);
            }
        } else if let Some(rest) = line.strip_prefix("#[doc(alias = \"") {
            alias = rest.split('"').next().map(String::from);
        } else if let Some((name, value)) = line.split_once(" = ").filter(|(left, _)| left.contains("const "))
        {
            let name = name.rsplit("const ").next().unwrap_or("").split(':').next().unwrap_or("").to_owned();
            let name = alias.take().unwrap_or(name);
            let value = value.trim_end_matches([';', ')']).trim_start_matches("Self(");
            if let (true, Some(number)) = (is_apples(&name), number(value)) {
                apple.numbers.insert(name, number);
            }
        } else if let Some(rest) = line.strip_prefix("pub static ") {
            apple.names.insert(word(rest));
        }
        if let Some((_, rest)) = line.split_once("fn ") {
            let name = word(rest);
            if is_apples(&name) {
                apple.names.insert(name);
            }
        }
    }
}

fn write_known(shim: &Shim, crates: &Path) -> Result<()> {
    let mut apple = Apple::default();
    let mut foundation = BTreeSet::new();
    for name in
        ["objc2-core-ml-0.3.2", "objc2-core-video-0.3.2", "objc2-foundation-0.3.2", "objc2-metal-0.3.2"]
    {
        let is_foundation = name.starts_with("objc2-foundation");
        let only_used = is_foundation || name.starts_with("objc2-metal");
        let mut selectors = BTreeSet::new();
        let mut found = Apple::default();
        let mut generated = files(&crates.join(name).join("src/generated"), "rs");
        // Of Metal the shim sees devices only.
        generated.retain(|file| !name.starts_with("objc2-metal") || file.ends_with("MTLDevice.rs"));
        for file in generated {
            read_generated(&fs::read_to_string(&file)?, &mut found, &mut selectors);
        }
        // A few of Foundation's are written by hand there.
        if is_foundation {
            for file in files(&crates.join(name).join("src"), "rs") {
                read_generated(&fs::read_to_string(&file)?, &mut found, &mut selectors);
            }
        }
        if only_used {
            foundation.extend(selectors);
        } else {
            ensure!(!found.methods.is_empty() || !found.names.is_empty(), "{name} has nothing in it");
            apple.methods.extend(found.methods);
            apple.numbers.extend(found.numbers);
            apple.names.extend(found.names);
        }
    }
    let wanted = ["ML", "CVPixelBuffer", "kCVPixelBuffer", "kCVReturn", "kCVPixelFormat"];
    apple.names.retain(|name| wanted.iter().any(|prefix| name.starts_with(prefix)));
    apple.numbers.retain(|name, _| wanted.iter().any(|prefix| name.starts_with(prefix)));

    let mut list = String::from(
        "# What Apple's headers declare: generated, not written. Made by `cargo xtask shim --known FOLDER`, where FOLDER holds\n\
         # the unpacked crates objc2-core-ml, objc2-core-video, objc2-foundation and objc2-metal 0.3.2, whose sources are\n\
         # themselves generated from Apple's headers (licensed Zlib OR Apache-2.0 OR MIT). Of Foundation and Metal only the\n\
         # selectors that the shim uses are listed, as Foundation's: after a new one, make the list anew.\n",
    );
    for (class, selectors) in &apple.methods {
        for selector in selectors {
            writeln!(list, "method {class} {selector}")?;
        }
        if selectors.is_empty() {
            writeln!(list, "method {class} alloc")?;
        }
    }
    for (name, number) in &apple.numbers {
        writeln!(list, "number {name} {number}")?;
    }
    for name in &apple.names {
        writeln!(list, "name {name}")?;
    }
    let mut used = BTreeSet::new();
    for source in shim.sources() {
        used.extend(used_by(shim, &source)?.selectors);
    }
    for selector in used.iter().filter(|selector| foundation.contains(*selector)) {
        writeln!(list, "foundation {selector}")?;
    }
    fs::write(shim.home.join("workalike/apple_api.txt"), list)?;
    check_calls(shim, &shim.sources())
}

// ---- planted faults ----

/// Which check is there for a fault.
#[derive(Clone, Copy, PartialEq)]
enum CaughtBy {
    /// clang refuses to compile it.
    Compiler,
    /// It is no call of Apple's.
    Calls,
    Analyzer,
    /// The driver, whose counters and expectations see it.
    Driver,
    Address,
    Zombies,
}

impl CaughtBy {
    fn name(self) -> &'static str {
        match self {
            CaughtBy::Compiler => "caught by -Werror",
            CaughtBy::Calls => "caught by the list of Apple's calls",
            CaughtBy::Analyzer => "caught by the analyzer",
            CaughtBy::Driver => "caught by the driver",
            CaughtBy::Address => "caught by AddressSanitizer",
            CaughtBy::Zombies => "caught by zombies",
        }
    }
}

/// A fault: in `file`, `from` (which must be there once) becomes `to`.
struct Plant {
    name: &'static str,
    caught_by: CaughtBy,
    /// The driver's tests that are run; all if empty.
    tests: &'static str,
    /// What the check must say.
    says: &'static str,
    edits: &'static [(&'static str, &'static str, &'static str)],
}

const PLANTS: &[Plant] = &[
    Plant {
        name: "an object is leaked",
        caught_by: CaughtBy::Driver,
        tests: "scalars",
        says: "objects",
        edits: &[("src/cml_value.m", "  [value->feature release];\n", "")],
    },
    Plant {
        name: "an object is leaked",
        caught_by: CaughtBy::Analyzer,
        tests: "",
        says: "Potential leak",
        edits: &[(
            "src/cml_model.m",
            "[[[MLModelConfiguration alloc] init] autorelease]",
            "[[MLModelConfiguration alloc] init]",
        )],
    },
    Plant {
        name: "an object is leaked when something throws",
        caught_by: CaughtBy::Driver,
        tests: "injection",
        says: "objects",
        edits: &[
            (
                "src/cml_predict.m",
                "*options = [[[MLPredictionOptions alloc] init] autorelease];",
                "*options = [[MLPredictionOptions alloc] init];",
            ),
            (
                "src/cml_predict.m",
                "  uint64_t ran = cml_now();\n",
                "  uint64_t ran = cml_now();\n  [options release];\n",
            ),
        ],
    },
    Plant {
        name: "a handle is leaked on failure",
        caught_by: CaughtBy::Driver,
        tests: "wrong_inputs",
        says: "handles",
        edits: &[("src/cml_predict.m", "    cml_result_free(call.result);\n", "")],
    },
    Plant {
        name: "an answer that comes early finds its request freed",
        caught_by: CaughtBy::Address,
        tests: "predict_async",
        says: "heap-use-after-free",
        edits: &[(
            "src/cml_predict.m",
            "  cml_handle_retain(prediction); /* the answer may come, and let go, before `begin` returns */\n",
            "",
        )],
    },
    Plant {
        name: "an asynchronous prediction does not keep its inputs",
        caught_by: CaughtBy::Address,
        tests: "predict_async",
        says: "heap-use-after-free",
        edits: &[(
            "src/cml_predict.m",
            "    cml_value_retain(prediction->values[i]);\n",
            "    if (i >= call.n_inputs) cml_value_retain(prediction->values[i]);\n",
        )],
    },
    Plant {
        name: "a cancelled load ends twice",
        caught_by: CaughtBy::Driver,
        tests: "load_async",
        says: "load_async",
        edits: &[("src/cml_request.m", "  if (atomic_exchange(&request->ended, true)) return;\n", "")],
    },
    Plant {
        name: "a load that nobody waits for any more is leaked",
        caught_by: CaughtBy::Driver,
        tests: "load_async",
        says: "objects",
        edits: &[("src/cml_request.m", "    cml_model_release(model);\n", "")],
    },
    Plant {
        name: "a release too many",
        caught_by: CaughtBy::Zombies,
        tests: "predict_every_kind",
        says: "deallocated",
        edits: &[(
            "src/cml_value.m",
            "  [value->array release];\n",
            "  [value->array release];\n  [value->array release];\n",
        )],
    },
    Plant {
        name: "a release too many",
        caught_by: CaughtBy::Address,
        tests: "predict_every_kind",
        says: "AddressSanitizer", // the runtime, which is not instrumented, is the one to trip
        edits: &[(
            "src/cml_value.m",
            "  [value->array release];\n",
            "  [value->array release];\n  [value->array release];\n",
        )],
    },
    Plant {
        name: "a handle's object is not retained",
        caught_by: CaughtBy::Zombies,
        tests: "describe",
        says: "deallocated",
        edits: &[("src/cml_model.m", "model->model = [loaded retain];", "model->model = loaded;")],
    },
    Plant {
        name: "a handle's object is not retained",
        caught_by: CaughtBy::Address,
        tests: "describe",
        says: "AddressSanitizer", // the runtime, which is not instrumented, is the one to trip
        edits: &[("src/cml_model.m", "model->model = [loaded retain];", "model->model = loaded;")],
    },
    Plant {
        name: "a handle is read after it was freed",
        caught_by: CaughtBy::Address,
        tests: "states",
        says: "heap-use-after-free",
        edits: &[(
            "src/cml_state.m",
            "  cml_model_release(state->model);\n  cml_handle_delete(state);\n",
            "  cml_handle_delete(state);\n  cml_model_release(state->model);\n",
        )],
    },
    Plant {
        name: "too little memory for a tensor",
        caught_by: CaughtBy::Address,
        tests: "layouts",
        says: "heap-buffer-overflow",
        edits: &[(
            "src/cml_tensor.m",
            "calloc(1, layout->bytes > 0 ? layout->bytes : 1)",
            "calloc(1, layout->count + 1)",
        )],
    },
    Plant {
        name: "a length is not checked",
        caught_by: CaughtBy::Driver,
        tests: "layouts",
        says: "27 bytes",
        edits: &[(
            "src/cml_tensor.m",
            "  if (layout->bytes > length) {",
            "  if (layout->bytes > length + 8) {",
        )],
    },
    Plant {
        name: "an overflow is not checked",
        caught_by: CaughtBy::Driver,
        tests: "layouts",
        says: "beyond",
        edits: &[(
            "src/cml_tensor.m",
            "    if (__builtin_mul_overflow(count, size, &count)) return false;",
            "    count *= size;",
        )],
    },
    Plant {
        name: "strides are ignored",
        caught_by: CaughtBy::Driver,
        tests: "predict_every_kind",
        says: "holds_f32",
        edits: &[(
            "src/cml_tensor.m",
            "    cml_copy(&to, destination, from, bytes);",
            "    CmlLayout dense = *from;\n    cml_layout_densify(&dense);\n    cml_copy(&to, destination, &dense, bytes);",
        )],
    },
    Plant {
        name: "a selector that is nowhere",
        caught_by: CaughtBy::Compiler,
        tests: "",
        says: "error",
        edits: &[("src/cml_describe.m", "feature.isOptional", "feature.isOptionel")],
    },
    Plant {
        name: "a selector that only GNUstep has",
        caught_by: CaughtBy::Calls,
        tests: "",
        says: "no selector fileAttributesAtPath:traverseLink:",
        edits: &[(
            "src/cml_model.m",
            "  if (path != nil) (void)[[NSFileManager defaultManager] removeItemAtPath:path error:NULL];",
            "  if (path != nil) (void)[[NSFileManager defaultManager] removeFileAtPath:path handler:nil];\n  \
             (void)[[NSFileManager defaultManager] fileAttributesAtPath:path traverseLink:NO];",
        )],
    },
    Plant {
        name: "a selector of the work-alike that Apple has not",
        caught_by: CaughtBy::Calls,
        tests: "",
        says: "the work-alike's MLModel has predictFromFeatures:options:error:",
        edits: &[],
    },
    Plant {
        name: "an exception is swallowed",
        caught_by: CaughtBy::Driver,
        tests: "injection",
        says: "status 0",
        edits: &[(
            "src/cml_internal.h",
            "    (status) = cml_fail_exception((error), exception_); \\",
            "    (void)(error), (void)exception_; \\",
        )],
    },
    Plant {
        name: "a slot that lets exceptions out",
        caught_by: CaughtBy::Driver,
        tests: "injection",
        says: "Uncaught exception",
        edits: &[
            ("src/cml_state.m", "  CML_TRY\n  status = cml_state_visit", "  status = cml_state_visit"),
            (
                "src/cml_state.m",
                "visit, context, error);\n  CML_CATCH(status, error)\n  cml_leave(state",
                "visit, context, error);\n  cml_leave(state",
            ),
        ],
    },
    Plant {
        name: "an exception that throws when it is read gets out",
        caught_by: CaughtBy::Driver,
        tests: "injection",
        says: "Uncaught exception",
        edits: &[(
            "src/cml_error.m",
            "  } @catch (...) { /* so does reading it",
            "  } @catch (NSString *other) { /* so does reading it",
        )],
    },
    Plant {
        name: "a question that throws lets go for its answer too",
        caught_by: CaughtBy::Address,
        tests: "throws_after",
        says: "cml_answer",
        edits: &[(
            "src/cml_model.m",
            "      pthread_mutex_lock(&answer->lock);\n      answer->done = true;\n",
            "      cml_answer_give(answer, nil, nil);\n      pthread_mutex_lock(&answer->lock);\n",
        )],
    },
    Plant {
        name: "a prediction that throws is freed under its answer",
        caught_by: CaughtBy::Address,
        tests: "throws_after",
        says: "heap-use-after-free",
        edits: &[(
            "src/cml_predict.m",
            "    if (atomic_exchange(&ticket->prediction, NULL) != NULL) {",
            "    if (atomic_load(&ticket->prediction) != NULL) {",
        )],
    },
    Plant {
        name: "a failure with a nil error",
        caught_by: CaughtBy::Driver,
        tests: "errors",
        says: "did not say why",
        edits: &[(
            "src/cml_error.m",
            "  if (cause == nil) return cml_fail(error, status,",
            "  if (cause == nil && error == NULL) return cml_fail(error, status,",
        )],
    },
    Plant {
        name: "the chain of causes is cut",
        caught_by: CaughtBy::Driver,
        tests: "errors",
        says: "test_errors",
        edits: &[(
            "src/cml_error.m",
            "    count++;\n    cause = cml_underlying(cause.userInfo);",
            "    count++;\n    cause = nil;",
        )],
    },
    Plant {
        name: "an ignored backing is believed",
        caught_by: CaughtBy::Driver,
        tests: "backings",
        says: "backing_used",
        edits: &[("src/cml_predict.m", "  if (given == backing->array) {", "  if (given != nil) {")],
    },
    Plant {
        name: "the owner of memory is released twice",
        caught_by: CaughtBy::Driver,
        tests: "wrap",
        says: "owner.released",
        edits: &[(
            "src/cml_tensor.m",
            "  if (atomic_load_explicit(&lease->armed, memory_order_acquire)) lease->release(lease->owner);",
            "  if (atomic_load_explicit(&lease->armed, memory_order_acquire)) lease->release(lease->owner), \
             lease->release(lease->owner);",
        )],
    },
    Plant {
        name: "the owner is released although wrapping failed",
        caught_by: CaughtBy::Driver,
        tests: "wrap",
        says: "owner.released",
        edits: &[(
            "src/cml_tensor.m",
            "atomic_init(&lease->armed, false);",
            "atomic_init(&lease->armed, true);",
        )],
    },
    Plant {
        name: "a breach of serial use goes unseen",
        caught_by: CaughtBy::Driver,
        tests: "serial",
        says: "CML_BUSY",
        edits: &[("src/cml_error.m", "  return seen == (uintptr_t)token;", "  return true;")],
    },
    Plant {
        name: "a handle is not left",
        caught_by: CaughtBy::Driver,
        tests: "states",
        says: "status 9",
        edits: &[("src/cml_predict.m", "  if (call->state != NULL) cml_leave(call->state, call);\n", "")],
    },
    Plant {
        name: "the temporary folder is left behind",
        caught_by: CaughtBy::Driver,
        tests: "load",
        says: "compiled models",
        edits: &[("src/cml_model.m", "  if (model->owns_compiled) cml_remove(model->compiled);\n", "")],
    },
    Plant {
        name: "a pixel buffer stays locked",
        caught_by: CaughtBy::Driver,
        tests: "images",
        says: "freed while locked",
        edits: &[("src/cml_image.m", "    CVPixelBufferUnlockBaseAddress(value->pixels, flags);\n", "")],
    },
    Plant {
        name: "an option is ignored on an old system",
        caught_by: CaughtBy::Driver,
        tests: "old_systems",
        says: "macOS 13",
        edits: &[(
            "src/cml_model.m",
            "    if (!set) return cml_fail_os(error, \"a display name\", \"macOS 13 or iOS 16\");\n",
            "    (void)set;\n",
        )],
    },
    Plant {
        name: "a process that ends early, with success",
        caught_by: CaughtBy::Driver,
        tests: "states",
        says: "did not come to its end",
        edits: &[(
            "workalike/CoreML.m",
            "__attribute__((constructor)) static void wa_meet_main_thread",
            "void wa_meet_main_thread(void);\nvoid wa_meet_main_thread",
        )],
    },
    Plant {
        name: "every row of a batch is the first",
        caught_by: CaughtBy::Driver,
        tests: "batch",
        says: "row == 1",
        edits: &[(
            "src/cml_predict.m",
            "call.inputs = whole->inputs + row * call.n_inputs;",
            "call.inputs = whole->inputs + 0 * row;",
        )],
    },
    Plant {
        name: "a lost row of a batch goes unseen",
        caught_by: CaughtBy::Driver,
        tests: "batch",
        says: "2 came back",
        edits: &[(
            "src/cml_predict.m",
            "if (given.count < 0 || (size_t)given.count != n_rows) {",
            "if (given.count < 0) {",
        )],
    },
    Plant {
        name: "a failed batch leaves results behind",
        caught_by: CaughtBy::Driver,
        tests: "batch",
        says: "results[0] == NULL",
        edits: &[(
            "src/cml_predict.m",
            "    cml_result_free(results[row]);\n    results[row] = NULL;\n",
            "    (void)row;\n",
        )],
    },
    Plant {
        name: "a question about functions leaves its compiled model",
        caught_by: CaughtBy::Driver,
        tests: "function_names",
        says: "compiled models",
        edits: &[("src/cml_model.m", "    if (made) cml_remove(compiled);\n", "")],
    },
    Plant {
        name: "a file of a model in memory keeps its whole name",
        caught_by: CaughtBy::Driver,
        tests: "load_memory",
        says: "missing",
        edits: &[("src/cml_memory.m", "[text substringFromIndex:prefix]", "text")],
    },
    Plant {
        name: "the function of a model in memory is not looked for",
        caught_by: CaughtBy::Driver,
        tests: "load_memory",
        says: "wanted 2",
        edits: &[(
            "src/cml_memory.m",
            "    status = cml_require_function(model->functions, function, error);\n",
            "",
        )],
    },
    Plant {
        name: "any GPU is as good as the one that is preferred",
        caught_by: CaughtBy::Driver,
        tests: "configuration",
        says: "wanted 3",
        edits: &[("src/cml_model.m", "      if (metal.registryID != registry_id) continue;\n", "")],
    },
    Plant {
        name: "a log that was unset is still told",
        caught_by: CaughtBy::Driver,
        tests: "log",
        says: "test_log",
        edits: &[(
            "src/cml_log.m",
            "  while (cml_log_running > 0) pthread_cond_wait(&cml_log_idle, &cml_log_lock);\n",
            "",
        )],
    },
    Plant {
        name: "a backing that is ignored is not told of",
        caught_by: CaughtBy::Driver,
        tests: "log",
        says: "heard.warnings",
        edits: &[(
            "src/cml_predict.m",
            "        cml_log(CML_LOG_WARNING,",
            "        if (false) cml_log(CML_LOG_WARNING,",
        )],
    },
    Plant {
        name: "a plan is asked of a system that has none",
        caught_by: CaughtBy::Driver,
        tests: "structure",
        says: "14.4",
        edits: &[
            (
                "src/cml_structure.m",
                "    if (!can) return cml_fail_os(error, \"a compute plan\", \"macOS 14.4 or iOS 17.4\");\n",
                "    (void)can;\n",
            ),
            (
                "src/cml_structure.m",
                "static CmlStatus cml_plan_of(NSString *compiled, MLModelConfiguration *settings, CmlJson *json, \
             CmlError **error) {\n  CML_IF_OS(14, 4, 17.4) {",
                "static CmlStatus cml_plan_of(NSString *compiled, MLModelConfiguration *settings, CmlJson *json, \
             CmlError **error) {\n  CML_IF_OS(11, 0, 14.0) {",
            ),
        ],
    },
    Plant {
        name: "an answer is freed with its waiter",
        caught_by: CaughtBy::Address,
        tests: "structure",
        says: "cml_answer",
        edits: &[
            ("src/cml_model.m", "  bool last = --answer->holders == 0;", "  bool last = true;"),
            // Whoever waits locks again when woken, before they touch what is freed; the lock must let them. So it is not
            // destroyed, and not in the first words, where AddressSanitizer notes who freed them.
            ("src/cml_model.m", "struct CmlAnswer {\n", "struct CmlAnswer {\n  void *noted[2];\n"),
            ("src/cml_model.m", "  pthread_cond_destroy(&answer->came);\n", ""),
            ("src/cml_model.m", "  pthread_mutex_destroy(&answer->lock);\n", ""),
        ],
    },
    Plant {
        name: "a hint is ignored",
        caught_by: CaughtBy::Driver,
        tests: "configuration",
        says: "specialization",
        edits: &[(
            "src/cml_model.m",
            "      hints.specializationStrategy = (MLSpecializationStrategy)strategy;\n",
            "",
        )],
    },
    Plant {
        name: "an asynchronous prediction does not keep its backings",
        caught_by: CaughtBy::Address,
        tests: "backings",
        says: "heap-use-after-free",
        edits: &[
            (
                "src/cml_predict.m",
                "    cml_value_retain(prediction->values[i]);\n",
                "    if (i < call.n_inputs) cml_value_retain(prediction->values[i]);\n",
            ),
            (
                "src/cml_predict.m",
                "  for (size_t i = 0; i < n_values; i++) cml_value_release(prediction->values[i]);",
                "  for (size_t i = 0; i < call->n_inputs; i++) cml_value_release(prediction->values[i]);\n  \
                 (void)n_values;",
            ),
        ],
    },
    Plant {
        name: "memory that is no object is leaked",
        caught_by: CaughtBy::Driver,
        tests: "soak",
        says: "after - before",
        edits: &[("src/cml_predict.m", "    cml_string_free(result->outputs[i].name);\n", "")],
    },
    Plant {
        name: "a state of another model is taken",
        caught_by: CaughtBy::Driver,
        tests: "wrong_inputs",
        says: "state",
        edits: &[(
            "src/cml_predict.m",
            "(!cml_is(state, &cml_tag_state) || state->model != model)",
            "!cml_is(state, &cml_tag_state)",
        )],
    },
];

impl Plant {
    fn must_be_caught(&self, shim: &Shim, plain: &Driver, address: &Driver, folder: &Path) -> Result<()> {
        ensure!(!self.says.is_empty(), "anything would do for a proof that it was caught");
        let _ = fs::remove_dir_all(folder);
        fs::create_dir_all(folder)?;
        let said = match self.said(shim, plain, address, folder) {
            Ok(_) => bail!("the planted fault survived"),
            Err(error) => match error.downcast::<Failed>() {
                Ok(failed) => failed.0,
                Err(error) => return Err(error),
            },
        };
        ensure!(
            said.contains(self.says),
            "it was caught, but not by {:?}; what was said:\n{said}",
            self.says
        );
        Ok(())
    }

    /// Plants the fault and runs the check for it, which should fail with [`Failed`].
    fn said(&self, shim: &Shim, plain: &Driver, address: &Driver, folder: &Path) -> Result<()> {
        if self.edits.is_empty() {
            return self.rename_in_workalike(shim, folder);
        }
        let mut planted: BTreeMap<PathBuf, String> = BTreeMap::new();
        for (file, from, to) in self.edits {
            let copy = folder.join(Path::new(file).file_name().context("a file has a name")?);
            let text = match planted.get(&copy) {
                Some(text) => text.clone(),
                None => fs::read_to_string(shim.home.join(file))?,
            };
            ensure!(
                text.matches(from).count() == 1,
                "the plant no longer applies: {file} has not exactly one {from:?}"
            );
            planted.insert(copy, text.replacen(from, to, 1));
        }
        let header = planted.keys().any(|file| file.extension().is_some_and(|extension| extension == "h"));
        for (file, text) in &planted {
            fs::write(file, text)?;
        }
        // A planted header is found by the files beside it.
        let mut sources: Vec<PathBuf> =
            planted.into_keys().filter(|file| file.extension().is_some_and(|e| e == "m")).collect();
        if header {
            for source in shim.sources() {
                let copy = folder.join(file_name(&source)?);
                if !sources.contains(&copy) {
                    fs::copy(&source, &copy)?;
                    sources.push(copy);
                }
            }
        }
        let (driver, way) = match self.caught_by {
            CaughtBy::Calls => {
                let whole: Vec<PathBuf> = shim
                    .sources()
                    .into_iter()
                    .filter(|source| !sources.iter().any(|s| s.file_name() == source.file_name()))
                    .collect();
                return check_calls(shim, &[whole, sources].concat());
            }
            CaughtBy::Analyzer => return analyze(shim, &sources),
            CaughtBy::Compiler | CaughtBy::Driver => (plain, Way::Plain),
            CaughtBy::Address => (address, Way::Address),
            CaughtBy::Zombies => (plain, Way::Zombies),
        };
        let mut objects = driver.objects.clone();
        for source in &sources {
            let object = folder.join(format!("{}.o", file_name(source)?));
            let compiled = shim.compile(source, &object, driver.sanitizer);
            if self.caught_by == CaughtBy::Compiler {
                return compiled;
            }
            compiled.map_err(|error| anyhow::anyhow!("the planted fault does not compile: {error:#}"))?;
            objects.insert(file_name(source)?, object);
        }
        let program = folder.join("drive");
        let linked = shim.link(&objects, &program, driver.sanitizer);
        linked.map_err(|error| anyhow::anyhow!("the planted fault does not link: {error:#}"))?;
        drive(&Driver { sanitizer: driver.sanitizer, objects, program }, way, self.tests).map(drop)
    }

    /// A name that shim and work-alike agree on, and only Apple knows to be wrong.
    fn rename_in_workalike(&self, shim: &Shim, folder: &Path) -> Result<()> {
        let (right, wrong) = ("predictionFromFeatures:", "predictFromFeatures:");
        let home = folder.join("bridge-objc");
        output(Command::new("cp").arg("-r").arg(&shim.home).arg(&home))?;
        for file in ["src/cml_predict.m", "workalike/CoreML.m", "workalike/CoreML/CoreML.h"] {
            let path = home.join(file);
            let text = fs::read_to_string(&path)?;
            ensure!(text.contains(right), "the plant no longer applies: {file} has no {right:?}");
            fs::write(&path, text.replace(right, wrong))?;
        }
        let renamed =
            Shim { home, work: folder.to_owned(), clang: shim.clang.clone(), flags: shim.flags.clone() };
        let object = folder.join("renamed.o");
        renamed
            .compile(&renamed.home.join("src/cml_predict.m"), &object, Sanitizer::None)
            .context("-Werror sees it")?;
        check_calls(&renamed, &renamed.sources())
    }
}

// ---- small things ----

/// Runs `work` on every item, as many at once as there are cores, with the number of the worker; stops at the first failure.
fn side_by_side<T: Sync>(items: &[T], work: impl Fn(usize, &T) -> Result<()> + Sync) -> Result<()> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(items.len());
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let run = |worker: usize| -> Result<()> {
        while !failed.load(Ordering::Relaxed) {
            let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) else { break };
            work(worker, item).inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
        }
        Ok(())
    };
    let run = &run;
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..workers).map(|worker| scope.spawn(move || run(worker))).collect();
        running.into_iter().try_for_each(|one| one.join().expect("a worker does not panic"))
    })
}

/// A program that ran and failed, with all it said.
#[derive(Debug)]
struct Failed(String);

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failed {}

/// Runs a program; its standard output, or an error with both outputs.
fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{:?} does not run", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(anyhow::Error::new(Failed(format!("{command:?}: {}\n{said}{complaint}", output.status))))
}

/// The files of a folder with an extension, by name; none if there is no such folder.
fn files(folder: &Path, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    files.sort();
    files
}

fn file_name(path: &Path) -> Result<String> {
    let name = path.file_name().with_context(|| format!("{} has no name", path.display()))?;
    Ok(name.to_string_lossy().into_owned())
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_one_bridge_lacks_is_seen() {
        let suite = "pub(crate) fn a(subject: &Subject) {\n}\npub(crate) fn b(subject: &Subject) {\n}\nfn c(x: u8) {\n";
        let declared = declared(suite);
        assert_eq!(declared.len(), 2);
        let whole = "good::a: test\ngood::b: test\nbad::a: test\nbad::b: test\n\n4 tests, 0 benchmarks\n";
        assert!(gaps(&declared, "f", 2, whole).is_empty());
        assert_eq!(gaps(&declared, "f", 1, "a: test\nmore: test\n"), ["f : `b` is not run"]);
        assert_eq!(
            gaps(&declared, "f", 2, "good::a: test\ngood::b: test\n"),
            ["f runs the suite 1 times, not 2"]
        );
        assert_eq!(gaps(&declared, "f", 1, ""), ["f runs the suite 0 times, not 1"]);
    }
}
