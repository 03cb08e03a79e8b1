//! What a pipeline over several devices would do, event by event.
//!
//! Device `d` has stage `d` of the model. Each group of sequences goes from device to device, and from the last one back
//! to the first, which then begins the group's next step. Devices and links take what comes in the order in which it
//! comes: prompts of all groups stand at the first device at the start. A message leaves when the link is free, takes its
//! bytes ÷ bandwidth to leave, and arrives when the latency has passed besides; the next one may leave meanwhile.
//!
//! Devices may share a machine's memory: then each is slower the more of the others compute ([`Work`]).

use std::collections::VecDeque;

/// Seconds that one group's run takes on one device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Work {
    /// While no other device computes.
    pub alone: f64,
    /// While all others do; as much where each has a machine of its own. In between, the slowdown grows with the number
    /// of devices that compute.
    pub together: f64,
}

impl Work {
    /// Of a device with a machine of its own.
    pub fn apart(seconds: f64) -> Self {
        Self { alone: seconds, together: seconds }
    }
}

/// One kind of run of a group.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// On each device.
    pub work: Vec<Work>,
    /// Bytes from each device to the next one; the last one's are the answer's.
    pub bytes: Vec<f64>,
}

/// Sequences that go together.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// How many.
    pub sequences: usize,
    /// The run over their prompts.
    pub prefill: Run,
    /// A run over one token of each.
    pub step: Run,
}

/// A link from a device to the next one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Link {
    /// Bytes a second; infinite where it costs nothing.
    pub bandwidth: f64,
    /// Seconds.
    pub latency: f64,
}

/// What is simulated.
#[derive(Debug, Clone, PartialEq)]
pub struct Pipeline {
    /// All there at the start.
    pub groups: Vec<Group>,
    /// From each device to the next one, and from the last to the first; none of a single device.
    pub links: Vec<Link>,
    /// Tokens that each sequence gets.
    pub generate: usize,
}

/// Seconds that a device computed.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Busy {
    /// Over prompts.
    pub prefill: f64,
    /// In steps.
    pub step: f64,
}

impl Busy {
    /// Both.
    pub fn all(self) -> f64 {
        self.prefill + self.step
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// From the start to the last token.
    pub seconds: f64,
    /// Seconds to the first token of each sequence.
    pub first_token: Vec<f64>,
    /// Generated tokens.
    pub tokens: usize,
    /// Seconds that each device computed: over prompts, and in steps.
    pub busy: Vec<Busy>,
    /// Seconds that each link was occupied.
    pub occupied: Vec<f64>,
}

impl Outcome {
    /// Generated tokens a second.
    pub fn tokens_per_second(&self) -> f64 {
        self.tokens as f64 / self.seconds
    }

    /// Share of the devices' time in which they did not compute.
    pub fn bubble_share(&self) -> f64 {
        1.0 - self.busy.iter().map(|busy| busy.all()).sum::<f64>() / (self.seconds * self.busy.len() as f64)
    }

    /// Share of the time in which the busiest link was occupied.
    pub fn link_utilisation(&self) -> f64 {
        self.occupied.iter().copied().fold(0.0, f64::max) / self.seconds
    }
}

/// A group on its way: which it is, and whether it is at its prompts.
#[derive(Debug, Clone, Copy)]
struct Task {
    group: usize,
    prompts: bool,
}

/// A device, and what waits for it.
#[derive(Debug, Default)]
struct Device {
    waiting: VecDeque<Task>,
    /// The task at hand, and the seconds that it would take alone from now on.
    running: Option<(Task, f64)>,
    busy: Busy,
}

struct State<'a> {
    of: &'a Pipeline,
    now: f64,
    devices: Vec<Device>,
    /// When each link is free.
    free: Vec<f64>,
    occupied: Vec<f64>,
    /// Messages under way: when they arrive, where, and what. Each link keeps their order.
    under_way: Vec<VecDeque<(f64, Task)>>,
    /// Tokens of each group.
    done: Vec<usize>,
    first: Vec<f64>,
    last: f64,
}

/// Simulates a pipeline whose groups have work for as many devices as there are links (or for one, without links).
///
/// # Panics
/// Groups of unequal numbers of devices: a bug of the caller.
pub fn simulate(pipeline: &Pipeline) -> Outcome {
    let count = pipeline.links.len().max(1);
    for group in &pipeline.groups {
        assert!(group.prefill.work.len() == count && group.step.work.len() == count, "work for every device");
        assert!(count == 1 || (group.prefill.bytes.len() == count && group.step.bytes.len() == count), "every link");
    }
    let groups = pipeline.groups.len();
    let mut state = State {
        of: pipeline,
        now: 0.0,
        devices: (0..count).map(|_| Device::default()).collect(),
        free: vec![0.0; count],
        occupied: vec![0.0; pipeline.links.len()],
        under_way: vec![VecDeque::new(); count],
        done: vec![0; groups],
        first: vec![0.0; groups],
        last: 0.0,
    };
    if pipeline.generate > 0 {
        state.devices[0].waiting.extend((0..groups).map(|group| Task { group, prompts: true }));
    }
    state.run();
    let first_token = pipeline.groups.iter().zip(&state.first).flat_map(|(g, at)| vec![*at; g.sequences]).collect();
    let tokens = pipeline.groups.iter().zip(&state.done).map(|(group, done)| group.sequences * done).sum();
    let busy = state.devices.iter().map(|device| device.busy).collect();
    Outcome { seconds: state.last, first_token, tokens, busy, occupied: state.occupied }
}

impl State<'_> {
    fn run(&mut self) {
        loop {
            self.start();
            let Some(seconds) = self.next() else { return };
            self.pass(seconds);
            self.finish();
            self.deliver();
        }
    }

    /// Idle devices begin what waits for them.
    fn start(&mut self) {
        for place in 0..self.devices.len() {
            if self.devices[place].running.is_none()
                && let Some(task) = self.devices[place].waiting.pop_front()
            {
                let alone = self.work(task, place).alone;
                self.devices[place].running = Some((task, alone));
            }
        }
    }

    fn work(&self, task: Task, device: usize) -> Work {
        let group = &self.of.groups[task.group];
        if task.prompts { group.prefill.work[device] } else { group.step.work[device] }
    }

    /// By how much a device is slower now than alone.
    fn slowdown(&self, task: Task, device: usize) -> f64 {
        let work = self.work(task, device);
        let others = self.devices.len() - 1;
        if others == 0 || work.alone <= 0.0 {
            return 1.0;
        }
        let computing = self.devices.iter().filter(|device| device.running.is_some()).count() - 1;
        1.0 + (work.together / work.alone - 1.0).max(0.0) * computing as f64 / others as f64
    }

    /// Seconds until something happens; `None` where nothing will.
    fn next(&self) -> Option<f64> {
        let computed = self
            .devices
            .iter()
            .enumerate()
            .filter_map(|(place, device)| device.running.map(|(task, left)| left * self.slowdown(task, place)));
        let arrived = self.under_way.iter().filter_map(|link| link.front()).map(|(at, _)| (at - self.now).max(0.0));
        computed.chain(arrived).reduce(f64::min)
    }

    /// Lets time pass.
    fn pass(&mut self, seconds: f64) {
        let slow: Vec<f64> = (self.devices.iter().enumerate())
            .map(|(place, device)| device.running.map_or(1.0, |(task, _)| self.slowdown(task, place)))
            .collect();
        self.now += seconds;
        for (device, slow) in self.devices.iter_mut().zip(slow) {
            if let Some((task, left)) = &mut device.running {
                *left -= seconds / slow;
                let busy = if task.prompts { &mut device.busy.prefill } else { &mut device.busy.step };
                *busy += seconds;
            }
        }
    }

    /// Sends on what is computed.
    fn finish(&mut self) {
        // Of what is left after subtractions that should leave nothing.
        const NOTHING: f64 = 1e-12;
        for place in 0..self.devices.len() {
            let Some((task, _)) = self.devices[place].running.filter(|(_, left)| *left <= NOTHING) else { continue };
            self.devices[place].running = None;
            let Some(link) = self.of.links.get(place) else {
                self.token(task);
                continue;
            };
            let group = &self.of.groups[task.group];
            let bytes = if task.prompts { group.prefill.bytes[place] } else { group.step.bytes[place] };
            let occupied = bytes / link.bandwidth;
            self.free[place] = self.free[place].max(self.now) + occupied;
            self.occupied[place] += occupied;
            self.under_way[place].push_back((self.free[place] + link.latency, task));
        }
    }

    /// Takes in what has arrived.
    fn deliver(&mut self) {
        for link in 0..self.under_way.len() {
            while let Some((_, task)) = self.under_way[link].front().copied().filter(|(at, _)| *at <= self.now) {
                self.under_way[link].pop_front();
                match link + 1 {
                    next if next < self.devices.len() => self.devices[next].waiting.push_back(task),
                    _ => self.token(task),
                }
            }
        }
    }

    /// A group's token is there.
    fn token(&mut self, task: Task) {
        let done = &mut self.done[task.group];
        *done += 1;
        if *done == 1 {
            self.first[task.group] = self.now;
        }
        self.last = self.now;
        if *done < self.of.generate {
            self.devices[0].waiting.push_back(Task { group: task.group, prompts: false });
        }
    }
}

#[cfg(test)]
mod tests;
