//! One daemon with its providers and tokens, and the rounds that are measured on it.

use std::fs;
use std::hint::black_box;
use std::io::Read;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};
use tokend_tests::bench::{self, Connection, Measurement, wait_until_ready};
use tokend_tests::daemon::Launch;
use tokend_tests::test_support::{provider_table, token_of};
use tokend_tests::{Answer, Fault, Provider, RealDaemon, TestDir, audit, memory, wait};

use crate::ROUNDS;
use crate::attacker::{Attack, DENIED, LETTERS, SOCKET_GROUP, long_scopes, watched};
use crate::table::{Comparison, Figures};

/// The quiet user.
const NEIGHBOUR: u32 = 61_002;

/// The limit of `tokend.service`, and a real-time class for all threads of the daemon.
const LIMITS: [&str; 5] = ["prlimit", "--nofile=9216:9216", "chrt", "--rr", "1"];

/// The other limit, beyond which the kernel kills the service.
const MEMORY_MAX_KIB: u64 = 1024 * 1024;

/// An attack lasts this long at least: time for its memory to be taken.
const ATTACK: Duration = Duration::from_secs(5);

/// How long a daemon may take to be idle again.
const RECOVERY: Duration = Duration::from_secs(120);

/// A daemon under attack.
pub(crate) struct Stage {
    daemon: RealDaemon,
    _providers: Vec<Provider>,
    _home: TestDir,
    figures: Figures,
    /// Hand-outs to the quiet user and, where they are known, to the attackers.
    handed_out: [u64; 2],
    /// Tells the thread that watches the daemon's memory to end.
    is_over: Arc<AtomicBool>,
    attacked: Duration,
    busy: Duration,
    has_ended: bool,
}

impl Stage {
    pub(crate) fn start(program: &Path) -> Self {
        let home = TestDir::new();
        let provider = Provider::start();
        let mut tables =
            provider_table(&home, "p", &provider.token_endpoint(), "max_requests_per_minute = 60000");
        let mut providers = vec![provider];
        let scopes =
            LETTERS.map(|letter| letter.to_string()).into_iter().chain(long_scopes()).collect::<Vec<_>>();
        let variants = format!("scope = {:?}\nvariants = {{ scope = {scopes:?} }}\n", scopes.join(" "));
        for round in 0..ROUNDS {
            let silent = Provider::start();
            silent.always(Answer::token(60).with_fault(Fault::HangBeforeHead));
            let name = format!("silent{round}");
            tables += &provider_table(&home, &name, &silent.token_endpoint(), "");
            // Nobody but a caller asks for it.
            let more = format!("{ANY}{variants}warm = \"on-demand\"\n");
            tables += &token_of(&name, &format!("waits{round}"), &more);
            providers.push(silent);
        }
        tables += &tokens(&variants);
        home.configure(&format!("socket_group = \"{SOCKET_GROUP}\""), &tables);
        let daemon = Launch::of(program, &home, "info").through(&LIMITS).start();
        let mut stage = Self {
            daemon,
            _providers: providers,
            _home: home,
            figures: Figures::default(),
            handed_out: [0; 2],
            is_over: Arc::default(),
            attacked: Duration::ZERO,
            busy: Duration::ZERO,
            has_ended: false,
        };
        let (pid, is_over) = (stage.daemon.pid(), Arc::clone(&stage.is_over));
        thread::spawn(move || kill_beyond_limit(pid, &is_over));
        wait::until("the tokens of the quiet user", || {
            let ready = ["get", "headers"].map(|verb| stage.measure(verb, Connection::New, 1).len() == 1);
            (ready == [true; 2]).then_some(())
        });
        stage
    }

    /// Measures the quiet user alone, and then beside the attack.
    pub(crate) fn round(&mut self, attack: &Attack, round: usize) {
        if self.has_ended {
            return;
        }
        let mut busy = bench::start(&["chrt", "--idle", "0"], self.daemon.socket(), &["busy"]);
        let alone = self.latencies(attack.verb);
        end(&mut busy);
        let mut attackers: Vec<Child> = (0..attack.users)
            .map(|user| {
                let numbers = [user.to_string(), attack.users.to_string(), round.to_string()];
                let [user, users, round] = numbers.each_ref().map(String::as_str);
                bench::start(&[], self.daemon.socket(), &["attacker", attack.name, user, users, round])
            })
            .collect();
        attackers.iter_mut().for_each(wait_until_ready);
        let (began, used) = (Instant::now(), self.processor_time());
        let beside = self.latencies(attack.verb);
        self.figures.kept.add(&alone[0], &beside[0]);
        self.figures.new.add(&alone[1], &beside[1]);
        thread::sleep(ATTACK.saturating_sub(began.elapsed()));
        self.busy += self.processor_time().saturating_sub(used);
        self.attacked += began.elapsed();
        for attacker in &mut attackers {
            self.handed_out[1] += if attack.is_counted { finish(attacker) } else { 0 };
            end(attacker);
        }
        self.has_ended = memory::peak_kib(self.daemon.pid()).is_none();
        self.figures.peak_kib = memory::peak_kib(self.daemon.pid()).or(self.figures.peak_kib);
        self.wait_until_idle();
        self.figures.counts_attackers = attack.is_counted;
    }

    /// Ends the daemon, and looks into its audit trail.
    pub(crate) fn end(mut self) -> Figures {
        self.is_over.store(true, Ordering::Relaxed);
        self.figures.has_ended = self.has_ended;
        if !self.has_ended {
            self.daemon.stop();
        }
        let log = self.daemon.log();
        let of_neighbour = audit::records(&log, "allow", |uid| uid == NEIGHBOUR);
        let [allowed, denied] =
            ["allow", "deny"].map(|decision| audit::records(&log, decision, |uid| uid > NEIGHBOUR));
        let seconds = self.attacked.as_secs_f64();
        self.figures.records_per_second = (allowed.lines + denied.lines) as f64 / seconds;
        self.figures.busy = self.busy.as_secs_f64() / seconds;
        let counted = if self.figures.counts_attackers { allowed.decisions } else { 0 };
        self.figures.missing = [
            self.handed_out[0].cast_signed() - of_neighbour.decisions.cast_signed(),
            self.handed_out[1].cast_signed() - counted.cast_signed(),
        ];
        self.figures
    }

    /// The latencies on a kept connection and on new ones.
    fn latencies(&mut self, verb: &str) -> [Vec<Duration>; 2] {
        [(Connection::Kept, 1000), (Connection::New, 500)]
            .map(|(connection, calls)| self.measure(verb, connection, calls))
    }

    fn measure(&mut self, verb: &str, connection: Connection, calls: usize) -> Vec<Duration> {
        let token = if verb == "headers" { "keyed" } else { "plain" };
        let (within, pause) = (Duration::from_secs(2), Duration::from_millis(1));
        let measurement = Measurement { connection, verb, token, calls, within, pause };
        let ids = [NEIGHBOUR, NEIGHBOUR, SOCKET_GROUP].map(|id| id.to_string());
        let [user, group, groups] = &ids;
        let user = ["--reuid", user, "--regid", group, "--groups", groups];
        let words = [&["chrt", "--rr", "1", "setpriv"][..], &user, &["--"]].concat();
        let calls = measurement.start(&words, self.daemon.socket());
        self.figures.failed += calls.failed;
        self.handed_out[0] += u64::try_from(calls.latencies.len()).unwrap();
        calls.latencies
    }

    /// Connections that have been closed may still be queued, and their memory in use.
    fn wait_until_idle(&self) {
        let idle = wait::within(RECOVERY, || {
            let used = self.processor_time();
            thread::sleep(Duration::from_millis(300));
            (self.processor_time().saturating_sub(used) < Duration::from_millis(30)).then_some(())
        });
        if idle.is_none() {
            println!("the daemon is not idle {RECOVERY:?} after the attack");
        }
    }

    /// The processor time of the daemon so far (`proc_pid_stat(5)`); zero once it has ended.
    fn processor_time(&self) -> Duration {
        let pid = self.daemon.pid();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let ticks = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
        let ticks: u64 = ticks.map(|number| number.parse::<u64>().unwrap_or_default()).sum();
        let per_second = sysconf(SysconfVar::CLK_TCK).unwrap().unwrap();
        Duration::from_secs_f64(ticks as f64 / per_second as f64)
    }
}

const ANY: &str = "allow = [\"any\"]\n";

/// The tokens of a provider that answers at once.
fn tokens(variants: &str) -> String {
    let of_neighbour = format!("allow = [\"user:{NEIGHBOUR}\"]\n");
    let keyed = |command: &str| format!("headers = {{ X-Key = {{ command = [{command}] }} }}\n");
    let mut tables = token_of("p", "plain", &of_neighbour);
    tables += &token_of("p", "keyed", &(keyed("\"echo\", \"key\"") + &of_neighbour));
    tables += &token_of("p", "slow", &(keyed("\"sh\", \"-c\", \"sleep 0.05; echo key\"") + ANY));
    tables += &token_of("p", "varied", &format!("{ANY}{variants}"));
    tables += &token_of("p", DENIED, "");
    watched()
        .chain(LETTERS.map(String::from))
        .map(|name| token_of("p", &name, ANY))
        .fold(tables, |all, one| all + &one)
}

/// Computes on each processor until it is killed.
pub(crate) fn keep_processors_busy() {
    let processors = thread::available_parallelism().unwrap().get();
    let threads: Vec<_> = (0..processors)
        .map(|_| {
            thread::spawn(|| {
                for number in 0..u64::MAX {
                    black_box(number.wrapping_mul(number));
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Kills the daemon if it takes too much memory. It is not waited for before `is_over`, so its number stays its own.
fn kill_beyond_limit(pid: u32, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        if memory::peak_kib(pid).is_some_and(|kib| kib > MEMORY_MAX_KIB) {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    child.wait().unwrap();
}

/// Lets attackers end by themselves: how many tokens they got.
fn finish(attacker: &mut Child) -> u64 {
    drop(attacker.stdin.take());
    let mut text = String::new();
    attacker.stdout.as_mut().unwrap().read_to_string(&mut text).unwrap();
    text.trim().parse().unwrap()
}

impl Comparison {
    fn add(&mut self, alone: &[Duration], beside: &[Duration]) {
        self.alone.push(alone.to_vec());
        self.beside.push(beside.to_vec());
    }
}
