use std::fs;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use nix::sys::stat::Mode;
use tokio::task::JoinSet;

use super::*;

const SECRET: &str = "correct-horse-battery-staple";

/// A directory with the file `secret` of mode 0600.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { directory: tempfile::tempdir().unwrap() };
        place.write(SECRET.as_bytes());
        place
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("secret")
    }

    fn write(&self, content: &[u8]) {
        std::fs::write(self.path(), content).unwrap();
        self.mode(0o600);
    }

    fn mode(&self, mode: u32) {
        std::fs::set_permissions(self.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    async fn read(&self) -> Result<String, String> {
        read(&SecretSource::File(self.path())).await
    }
}

async fn read(source: &SecretSource) -> Result<String, String> {
    read_with(source, &[]).await
}

/// Reads with nothing in the environment but `variables` and the search path.
async fn read_with(source: &SecretSource, variables: &[(&str, &[u8])]) -> Result<String, String> {
    let environment = |name: &str| {
        let found = variables.iter().find(|(variable, _)| *variable == name);
        let found = found.map(|(_, value)| std::ffi::OsStr::from_bytes(value).to_owned());
        found.or_else(|| std::env::var_os(name).filter(|_| name == "PATH"))
    };
    match source.read_with(&environment, ()).await {
        Ok(secret) => Ok(secret.expose().to_owned()),
        Err(error) => {
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("horse"), "a secret is shown: {shown}");
            Err(error.to_string())
        }
    }
}

fn shell(script: &str) -> SecretSource {
    SecretSource::Command(["/bin/sh", "-c", script].map(str::to_owned).to_vec())
}

fn is_root() -> bool {
    geteuid().is_root()
}

#[track_caller]
fn assert_refused(read: Result<String, String>, parts: &[&str]) {
    let error = read.unwrap_err();
    for part in parts {
        assert!(error.contains(part), "{error:?} has no {part:?}");
    }
}

#[tokio::test]
async fn one_end_of_line_is_not_a_part_of_the_secret() {
    let place = Place::new();
    for (content, secret) in [
        ("abc", "abc"),
        ("abc\n", "abc"),
        ("abc\r\n", "abc"),
        ("abc\n\n", "abc\n"),
        ("abc\r", "abc\r"),
        (" abc ", " abc "),
        ("a\nb\n", "a\nb"),
    ] {
        place.write(content.as_bytes());
        assert_eq!(place.read().await.as_deref(), Ok(secret), "{content:?}");
    }
}

#[tokio::test]
async fn what_is_no_text_is_no_secret() {
    let place = Place::new();
    let path = place.path().display().to_string();
    for (content, part) in [
        (&b""[..], "empty"),
        (b"\n", "empty"),
        (b"\r\n", "empty"),
        (b"horse\xff", "not UTF-8"),
        (b"horse\0", "NUL"),
    ] {
        place.write(content);
        assert_refused(place.read().await, &["secret file", &path, part]);
    }
}

#[tokio::test]
async fn a_secret_has_at_most_64_kib() {
    let place = Place::new();
    place.write(&vec![b'x'; SECRET_MAX]);
    assert_eq!(place.read().await.map(|secret| secret.len()), Ok(SECRET_MAX));
    place.write(&vec![b'x'; SECRET_MAX + 1]);
    assert_refused(place.read().await, &["more than 65536 bytes"]);
    let variable = vec![b'x'; SECRET_MAX + 1];
    let source = SecretSource::Environment("S".into());
    assert_refused(read_with(&source, &[("S", &variable)]).await, &["more than 65536 bytes"]);
}

#[tokio::test]
async fn a_changed_file_is_seen_at_the_next_read() {
    let place = Place::new();
    assert_eq!(place.read().await.as_deref(), Ok(SECRET));
    let next = place.directory.path().join("next");
    std::fs::write(&next, "rotated").unwrap();
    std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(next, place.path()).unwrap();
    assert_eq!(place.read().await.as_deref(), Ok("rotated"));
}

#[tokio::test]
async fn a_file_that_others_could_read_is_refused_with_the_remedy() {
    let place = Place::new();
    let path = place.path().display().to_string();
    for mode in [0o604, 0o644, 0o602, 0o601, 0o666, 0o777, 0o620, 0o640, 0o440] {
        place.mode(mode);
        let remedy = format!("chmod 0600 {path}");
        assert_refused(place.read().await, &[&format!("mode {mode:04o}"), &remedy]);
    }
    for mode in [0o400, 0o600, 0o700] {
        place.mode(mode);
        assert_eq!(place.read().await.as_deref(), Ok(SECRET), "{mode:o}");
    }
}

#[tokio::test]
async fn a_file_of_another_user_is_refused() {
    if !is_root() {
        return;
    }
    let place = Place::new();
    chown(place.path(), None, Some(54321)).unwrap();
    place.mode(0o600);
    assert_eq!(place.read().await.as_deref(), Ok(SECRET), "the group can do nothing");
    chown(place.path(), Some(54321), Some(0)).unwrap();
    assert_refused(place.read().await, &["owned by user 54321", "chown 0 "]);
}

#[tokio::test]
async fn only_a_regular_file_is_read_and_nothing_is_waited_for() {
    let place = Place::new();
    let at = |name: &str| place.directory.path().join(name);
    nix::unistd::mkfifo(&at("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    let cases = [
        (at("pipe"), "not a regular file"),
        (at("socket"), "cannot be read"),
        (place.directory.path().to_owned(), "not a regular file"),
        (PathBuf::from("/dev/null"), "not a regular file"),
        (at("missing"), "cannot be read: No such file"),
    ];
    for (path, part) in cases {
        assert_refused(read(&SecretSource::File(path)).await, &[part]);
    }
    symlink(place.path(), at("link")).unwrap();
    assert_eq!(read(&SecretSource::File(at("link"))).await.as_deref(), Ok(SECRET));
}

#[tokio::test]
async fn a_credential_is_in_the_directory_that_systemd_made() {
    let place = Place::new();
    // systemd gives the files to root, readable by an access list that shows as a group.
    place.mode(0o444);
    let source = SecretSource::Credential("secret".into());
    let directory = place.directory.path().as_os_str().as_bytes();
    let variables: [(&str, &[u8]); 1] = [(CREDENTIALS_DIRECTORY, directory)];
    assert_eq!(read_with(&source, &variables).await.as_deref(), Ok(SECRET));
    assert_refused(read(&source).await, &["systemd credential \"secret\"", "LoadCredential="]);
    let missing = SecretSource::Credential("missing".into());
    assert_refused(
        read_with(&missing, &variables).await,
        &["systemd credential \"missing\"", "No such file"],
    );
}

#[tokio::test]
async fn a_file_in_the_directory_of_credentials_is_as_private_as_the_directory() {
    let place = Place::new();
    place.mode(0o440);
    let source = SecretSource::File(place.path());
    let directory = place.directory.path().as_os_str().as_bytes();
    assert_eq!(read_with(&source, &[(CREDENTIALS_DIRECTORY, directory)]).await.as_deref(), Ok(SECRET));
    let leading_out = SecretSource::File(place.directory.path().join("sub/../secret"));
    std::fs::create_dir(place.directory.path().join("sub")).unwrap();
    let beside = place.directory.path().join("sub");
    let cases: [(&SecretSource, &[u8]); 4] = [
        (&source, beside.as_os_str().as_bytes()),
        (&leading_out, beside.as_os_str().as_bytes()),
        (&leading_out, directory),
        (&source, b""),
    ];
    for (source, directory) in cases {
        assert_refused(read_with(source, &[(CREDENTIALS_DIRECTORY, directory)]).await, &["mode 0440"]);
    }
}

#[tokio::test]
async fn a_variable_is_read_from_the_environment() {
    let source = SecretSource::Environment("PSB_SECRET".into());
    assert_eq!(read_with(&source, &[("PSB_SECRET", SECRET.as_bytes())]).await.as_deref(), Ok(SECRET));
    assert_refused(read(&source).await, &["environment variable \"PSB_SECRET\"", "not set"]);
    assert_refused(read_with(&source, &[("PSB_SECRET", b"horse\xff")]).await, &["not UTF-8"]);
}

#[tokio::test]
async fn a_command_is_run_without_a_shell_and_with_little_environment() {
    let words = ["printf", "%s", "$HOME;`id`"].map(str::to_owned).to_vec();
    assert_eq!(read(&SecretSource::Command(words)).await.as_deref(), Ok("$HOME;`id`"));
    let source = shell("printf '%s:%s:' \"$HOME\" \"$OTHER_SECRET\"; cat");
    let variables: [(&str, &[u8]); 2] = [("HOME", b"/h"), ("OTHER_SECRET", b"horse")];
    assert_eq!(read_with(&source, &variables).await.as_deref(), Ok("/h::"), "and nothing on standard input");
    assert!(std::env::vars().count() > 2, "there is something to be held back");
    let inherited = read(&shell("env")).await.unwrap();
    let names = inherited.lines().filter_map(|line| Some(line.split_once('=')?.0));
    let names: Vec<&str> = names
        .filter(|name| !["PWD", "OLDPWD", "SHLVL", "_", "TOKEND_SECRET_COMMAND"].contains(name))
        .collect();
    assert_eq!(names, ["PATH"], "the rest of the daemon's environment stays there");
}

#[tokio::test]
async fn a_command_that_fails_gives_no_secret() {
    let failing = shell("echo horse; echo horse >&2; exit 3");
    assert_refused(read(&failing).await, &["secret command \"/bin/sh\"", "exit status: 3"]);
    assert_refused(read(&shell("kill -9 $$")).await, &["signal: 9"]);
    assert_refused(read(&shell("true")).await, &["empty"]);
    let missing = SecretSource::Command(vec!["/nonexistent/program".into(), "horse".into()]);
    assert_refused(read(&missing).await, &["secret command \"/nonexistent/program\"", "cannot be started"]);
}

#[tokio::test]
async fn a_command_that_never_stops_writing_is_stopped() {
    assert_refused(read(&shell("while :; do echo horse; done")).await, &["more than 65536 bytes"]);
}

/// Taken by tests that wait until programs of theirs have certain places.
static PLACES: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Runs `reads` at once, each of a program that says how many of them run when it starts, and goes on when
/// `limit` of them do. Returns what they say.
async fn crowd<R>(limit: usize, reads: impl Fn(SecretSource) -> R) -> Vec<usize>
where
    R: Future<Output = Result<Secret, SecretSourceError>> + Send + 'static,
{
    let place = Place::new();
    let (running, go) = (place.directory.path().join("running"), place.directory.path().join("go"));
    std::fs::create_dir(&running).unwrap();
    let script = format!(
        "cd '{}' && : > $$ && set -- * && echo $# && while ! [ -e '{}' ]; do sleep 0.02; done; rm $$",
        running.display(),
        go.display()
    );
    let reading: Vec<_> = (0..2 * limit).map(|_| tokio::spawn(reads(shell(&script)))).collect();
    for _ in 0..3000 {
        if std::fs::read_dir(&running).unwrap().count() >= limit {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    std::fs::write(go, "").unwrap();
    let mut counts = Vec::new();
    for read in reading {
        counts.push(read.await.unwrap().unwrap().expose().parse().unwrap());
    }
    counts
}

#[tokio::test]
async fn few_commands_run_at_once_and_those_of_callers_leave_room_for_others() {
    let _alone = PLACES.lock().await;
    let all = crowd(4, |source| async move { source.read().await }).await;
    assert!(all.len() == 8 && all.iter().all(|count| *count <= 4), "{all:?}");
    let turns = |source: SecretSource| async move { source.read_for_caller(&UserTurns::default()).await };
    let callers = crowd(2, turns).await;
    assert!(callers.len() == 4 && callers.iter().all(|count| *count <= 2), "{callers:?}");
}

#[tokio::test]
async fn a_user_with_999_slow_commands_delays_no_other_user() {
    let _alone = PLACES.lock().await;
    let place = Place::new();
    let started = place.directory.path().join("started");
    let slow = shell(&format!("echo >> '{}'; sleep 600", started.display()));
    let flooding = UserTurns::default();
    let mut flood = JoinSet::new();
    for _ in 0..999 {
        let (slow, turns) = (slow.clone(), flooding.clone());
        flood.spawn(async move { slow.read_for_caller(&turns).await });
    }
    let starts = || std::fs::read_to_string(&started).unwrap_or_default().len();
    while starts() == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    // Waiting for all the slow ones would take more than an hour.
    let (quick, turns) = (shell("echo secret"), UserTurns::default());
    let other = tokio::time::timeout(Duration::from_secs(60), quick.read_for_caller(&turns)).await;
    let other = other.expect("the other user waits for slow commands").unwrap();
    assert_eq!((other.expose(), starts()), ("secret", 1), "the other user waited for a slow command");
}

#[tokio::test]
async fn files_of_a_user_that_hang_leave_threads_for_other_users() {
    let place = Place::new();
    let (source, turns) = (SecretSource::File(place.path()), UserTurns::default());
    let hanging = turns.files.acquire_many(4).await.unwrap();
    let mut waiting = Box::pin(source.read_for_caller(&turns));
    assert!((&mut waiting).now_or_never().is_none());
    for _ in 0..10 {
        assert_eq!(source.read_for_caller(&UserTurns::default()).await.unwrap().expose(), SECRET);
    }
    assert!((&mut waiting).now_or_never().is_none(), "the user has a fifth turn");
    drop(hanging);
    assert_eq!(waiting.await.unwrap().expose(), SECRET);
}

#[tokio::test]
async fn files_that_callers_wait_for_leave_room_for_others() {
    let place = Place::new();
    let source = SecretSource::File(place.path());
    let all = CALLERS_FILES.acquire_many(64).await.unwrap();
    let turns = UserTurns::default();
    let mut waiting = Box::pin(source.read_for_caller(&turns));
    assert!((&mut waiting).now_or_never().is_none(), "the callers' share is taken");
    assert_eq!(source.read().await.unwrap().expose(), SECRET);
    drop(all);
    assert_eq!(waiting.await.unwrap().expose(), SECRET);
}

#[tokio::test]
async fn a_thread_that_hangs_keeps_its_permit_when_nobody_waits_for_it_any_more() {
    let turn = Arc::new(Semaphore::new(1));
    let (let_go, hanging) = std::sync::mpsc::channel::<()>();
    let permit = Arc::clone(&turn).acquire_owned().await.unwrap();
    let given_up = on_another_thread(permit, move || hanging.recv()).now_or_never();
    assert!(given_up.is_none());
    let place = Place::new();
    let (source, paths) = (SecretSource::File(place.path()), vec![place.path()]);
    assert!(
        source.read_in_turn(&turn).now_or_never().is_none() && stamps(paths, &turn).now_or_never().is_none()
    );
    assert_eq!(source.read().await.unwrap().expose(), SECRET);
    assert_eq!(turn.available_permits(), 0);
    drop(let_go);
    assert_eq!(source.read_in_turn(&turn).await.unwrap().expose(), SECRET);
}

/// Waits until `path` has a whole line, and reads it as a process number.
async fn process_in(path: &Path) -> i32 {
    for _ in 0..3000 {
        if let Some(number) =
            std::fs::read_to_string(path).ok().and_then(|text| text.strip_suffix('\n')?.parse().ok())
        {
            return number;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    0
}

fn is_alive(process: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = status.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
    state.is_some_and(|state| !"ZX".contains(state))
}

/// Waits until a process is gone, or waits for its parent to notice that it is.
async fn is_gone(process: i32) -> bool {
    for _ in 0..3000 {
        if !is_alive(process) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

/// Programs that start another one, which writes its process number into a file and does nothing more.
fn hanging(place: &Place) -> (PathBuf, [SecretSource; 3]) {
    let file = place.directory.path().join("process");
    let (file_name, own_number) =
        (file.display(), format!("sh -c 'echo $$ > {}; exec sleep 600'", file.display()));
    let programs = [
        // It has the program's output open.
        format!("sleep 600 & echo $! > '{file_name}'; wait"),
        // It has a session of its own, and so is in no group of the program.
        format!("setsid {own_number} > /dev/null & sleep 600"),
        // In addition, its parent has ended.
        format!("setsid --fork {own_number} > /dev/null; sleep 600"),
    ];
    (file, programs.map(|program| shell(&program)))
}

#[tokio::test]
async fn a_command_that_hangs_is_killed_with_all_that_it_started() {
    let place = Place::new();
    let (file, programs) = hanging(&place);
    for source in programs {
        let reading = tokio::spawn(async move { read(&source).await });
        let process = process_in(&file).await;
        assert_ne!(process, 0, "the command did not start");
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(11)).await;
        tokio::time::resume();
        assert_refused(reading.await.unwrap(), &["no answer within 10 seconds and was killed"]);
        assert!(is_gone(process).await, "what the command started lives on");
        std::fs::remove_file(&file).unwrap();
    }
}

#[tokio::test]
async fn a_command_that_nobody_waits_for_is_killed() {
    let place = Place::new();
    let (file, programs) = hanging(&place);
    for source in programs {
        let reading = tokio::spawn(async move { read(&source).await });
        let process = process_in(&file).await;
        assert_ne!(process, 0, "the command did not start");
        reading.abort();
        assert!(is_gone(process).await, "what the command started lives on");
        std::fs::remove_file(&file).unwrap();
    }
}

#[tokio::test]
async fn a_process_that_a_successful_command_leaves_behind_ends_with_the_last_command() {
    let place = Place::new();
    let file = place.directory.path().join("process");
    let running = shell(&format!(
        "while ! [ -e '{}/go' ]; do sleep 0.02; done; echo a",
        place.directory.path().display()
    ));
    let running = tokio::spawn(async move { read(&running).await });
    let agent = format!(
        "setsid --fork sh -c 'echo $$ > {}; exec sleep 600' > /dev/null; echo secret",
        file.display()
    );
    assert_eq!(read(&shell(&agent)).await.as_deref(), Ok("secret"));
    let process = process_in(&file).await;
    assert!(is_alive(process), "the other command may use it");
    std::fs::write(place.directory.path().join("go"), "").unwrap();
    running.await.unwrap().unwrap();
    // Commands of other tests may run.
    for _ in 0..3000 {
        if !is_alive(process) {
            return;
        }
        read(&shell("echo a")).await.unwrap();
    }
    panic!("what the command started lives on");
}

#[test]
fn a_stamp_differs_after_every_way_to_replace_a_secret_and_not_after_a_look_at_it() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let write = |name: &str, text: &str| fs::write(at(name), text).unwrap();
    write("old", "a");
    write("new", "b");
    let secret = at("secret");
    let changes: [(&str, &dyn Fn()); 6] = [
        ("it appears", &|| write("secret", "one")),
        ("written in place", &|| write("secret", "other")),
        ("mode", &|| fs::set_permissions(at("secret"), fs::Permissions::from_mode(0o640)).unwrap()),
        ("renamed over", &|| fs::rename(at("new"), at("secret")).unwrap()),
        ("a link in its place", &|| {
            symlink(at("old"), at("link")).unwrap();
            fs::rename(at("link"), at("secret")).unwrap();
        }),
        ("it is gone", &|| fs::remove_file(at("secret")).unwrap()),
    ];
    for (what, change) in changes {
        let before = stamp(&secret);
        let _ = fs::read(&secret);
        assert_eq!(stamp(&secret), before, "{what}: looked at only");
        change();
        assert_ne!(stamp(&secret), before, "{what}");
    }
}
