//! Batches through a pipeline: the schedule, and what comes back.

use std::time::Instant;

use ndarray::ArrayView2;

use super::Pipeline;
use crate::engine::prompt::Prompt;
use crate::engine::serving::{Feed, Look, Sequence, Served, Wave};
use crate::engine::stages::processes::Event;
use crate::engine::stages::stage::Next;
use crate::engine::stages::wire::{Answer, Begin, Run};
use crate::error::{Error, Result};

impl Pipeline {
    /// Generates exactly `generate` tokens after each prompt, each the most likely one; stop tokens are ignored.
    ///
    /// # Errors
    /// No prompts, or empty ones; prompts beyond the context; images; a stage that failed, ended or is silent; logits
    /// that are not finite. After an error the pipeline does nothing any more.
    pub fn serve(&mut self, prompts: &[Prompt], generate: usize, feed: &mut Feed) -> Result<Served> {
        let start = Instant::now();
        if generate == 0 {
            return Err(Error::new("a batch needs at least one new token"));
        }
        self.begin(prompts, generate)?;
        let nothing = Sequence { tokens: Vec::with_capacity(generate), first_seconds: 0.0, last_seconds: 0.0 };
        let mut sequences = vec![nothing; prompts.len()];
        let mut first = 0;
        let firsts: Vec<usize> = self.sizes.iter().map(|size| (first, first += size).0).collect();
        for group in 0..self.sizes.len() {
            let rows = prompts[firsts[group]..][..self.sizes[group]].iter().map(|prompt| prompt.tokens.clone());
            self.submit(&Run {
                group: group as u32,
                prompts: true,
                logits: false,
                rows: rows.collect(),
                tensors: vec![],
            })?;
        }
        let mut left = self.sizes.len() * generate;
        while left > 0 {
            let answer = self.answer()?;
            let now = start.elapsed().as_secs_f64();
            left -= 1;
            let first = firsts[answer.group as usize];
            let step = sequences[first].tokens.len();
            let mut rows = Vec::with_capacity(answer.tokens.len());
            for (number, token) in (first..).zip(&answer.tokens) {
                let sequence = &mut sequences[number];
                sequence.tokens.push(*token);
                sequence.last_seconds = now;
                if step == 0 {
                    sequence.first_seconds = now;
                }
                rows.push(vec![feed(number, step, *token)]);
            }
            if step + 1 < generate {
                self.submit(&Run { group: answer.group, prompts: false, logits: false, rows, tensors: vec![] })?;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        let count = sequences.len();
        let decoding: f64 = sequences.iter().map(|sequence| sequence.last_seconds - sequence.first_seconds).sum();
        // Groups begin to decode one after the other: together they are one wave, whose decode is theirs on the average.
        let wave = Wave {
            size: count,
            began: count,
            prefill_seconds: sequences.iter().map(|sequence| sequence.first_seconds).fold(0.0, f64::max),
            decode_seconds: decoding / count as f64,
            steps: generate - 1,
            prefill_read_bytes: 0,
            decode_read_bytes: 0,
        };
        Ok(Served { sequences, waves: vec![wave], seconds, traffic: None, search: None })
    }

    /// The same prompts with what is fed given; `look` gets the logits after each prompt (0 tokens fed) and after each
    /// token.
    ///
    /// # Errors
    /// As [`Pipeline::serve`], and what `look` returns; another number of lists than of prompts, lists of unequal
    /// lengths.
    pub fn forced(&mut self, prompts: &[Prompt], forced: &[Vec<u32>], look: &mut Look) -> Result<()> {
        let steps = forced.first().map_or(0, Vec::len);
        if forced.len() != prompts.len() || forced.iter().any(|tokens| tokens.len() != steps) {
            let (lists, prompts) = (forced.len(), prompts.len());
            return Err(Error::new(format!(
                "{lists} lists of tokens to feed after {prompts} prompts, which must be one each, all of the same length"
            )));
        }
        self.prefill(prompts, steps)?;
        for step in 0..=steps {
            if step > 0 {
                let tokens: Vec<u32> = forced.iter().map(|tokens| tokens[step - 1]).collect();
                self.step(&tokens)?;
            }
            for (number, logits) in self.logits.chunks_exact(self.vocab.max(1)).enumerate() {
                look(number, step, logits)?;
            }
        }
        Ok(())
    }

    /// Starts anew with these prompts, after each of which `steps` tokens at most will follow; the logits of each row's
    /// last token are ready afterwards.
    ///
    /// # Errors
    /// As [`Pipeline::serve`].
    pub fn prefill(&mut self, prompts: &[Prompt], steps: usize) -> Result<()> {
        self.begin(prompts, steps)?;
        let rows: Vec<Vec<u32>> = prompts.iter().map(|prompt| prompt.tokens.clone()).collect();
        self.run_all(true, &rows)
    }

    /// Appends one token to every row. The logits of the new tokens are ready afterwards.
    ///
    /// # Errors
    /// As [`Pipeline::serve`]; another number of tokens than of rows.
    pub fn step(&mut self, tokens: &[u32]) -> Result<()> {
        let rows: Vec<Vec<u32>> = tokens.iter().map(|token| vec![*token]).collect();
        self.run_all(false, &rows)
    }

    /// The logits of every row's last token: `[batch, vocabulary]`.
    pub fn logits(&self) -> ArrayView2<'_, f32> {
        ArrayView2::from_shape((self.logits.len() / self.vocab.max(1), self.vocab), &self.logits)
            .expect("logits are whole rows")
    }

    fn run_all(&mut self, prompts: bool, rows: &[Vec<u32>]) -> Result<()> {
        let batch = self.sizes.iter().sum::<usize>();
        if rows.len() != batch {
            return Err(Error::new(format!("{} rows for a batch of {batch}", rows.len())));
        }
        let mut rows = rows;
        for group in 0..self.sizes.len() {
            let (own, others) = rows.split_at(self.sizes[group]);
            self.submit(&Run { group: group as u32, prompts, logits: true, rows: own.to_vec(), tensors: vec![] })?;
            rows = others;
        }
        self.logits.clear();
        for group in 0..self.sizes.len() {
            let answer = self.answer()?;
            // Links and stages keep the order.
            if answer.group as usize != group || answer.logits.len() != self.sizes[group] * self.vocab {
                self.broken = true;
                return Err(Error::environment("the last stage says something of another run than was asked"));
            }
            self.logits.extend_from_slice(&answer.logits);
        }
        Ok(())
    }

    /// Lets every stage allocate for these prompts and so many tokens after each.
    fn begin(&mut self, prompts: &[Prompt], more: usize) -> Result<()> {
        if self.broken {
            return Err(Error::environment("the pipeline broke before").hint("load it again"));
        }
        if prompts.is_empty() || prompts.iter().any(|prompt| prompt.tokens.is_empty()) {
            return Err(Error::new("a batch needs at least one prompt, and each prompt at least one token"));
        }
        if prompts.iter().any(|prompt| !prompt.images.is_empty()) {
            return Err(Error::unsupported("a pipeline of several processes takes no images"));
        }
        let context = self.context;
        let longest = prompts.iter().map(|prompt| prompt.tokens.len()).max().unwrap_or(0);
        if longest + more > context {
            let message =
                format!("{} tokens (prompt and generated) exceed the model's context of {context}", longest + more);
            return Err(Error::new(message).hint("use a shorter prompt or generate fewer tokens"));
        }
        self.sizes = self.stages.group_sizes(prompts.len());
        let begin =
            Begin { sizes: self.sizes.iter().map(|size| *size as u32).collect(), capacity: (longest + more) as u32 };
        let begun = self.stage.as_mut().map_or(Ok(()), |stage| stage.begin(&begin));
        self.note(begun)?;
        let sent = if self.link.is_some() { self.send(begin.frame()) } else { Ok(()) };
        self.note(sent)
    }

    /// Takes a run through this stage and sends it to the next one.
    fn submit(&mut self, run: &Run) -> Result<()> {
        let next = self.stage.as_mut().map_or_else(|| Ok(Next::Pass(run.frame())), |stage| stage.run(run));
        let next = match next {
            Ok(Next::Done(answer)) => {
                self.own.push_back(answer);
                Ok(())
            }
            Ok(Next::Pass(frame)) => self.send(frame),
            Err(error) => Err(error),
        };
        self.note(next)
    }

    /// The next answer.
    fn answer(&mut self) -> Result<Answer> {
        if let Some(answer) = self.own.pop_front() {
            return Ok(answer);
        }
        let answer = self.wait_for_answer();
        self.note(answer)
    }

    fn wait_for_answer(&mut self) -> Result<Answer> {
        let processes = self.processes.as_mut().ok_or_else(|| Error::new("no run is under way; this is a bug"))?;
        let Event::Answer(body) = processes.wait()? else {
            return Err(Error::environment("a stage says something that nobody asked"));
        };
        let answer = Answer::parse(&body)?;
        if self.sizes.get(answer.group as usize) != Some(&answer.tokens.len()) {
            return Err(Error::environment("the last stage says something of another run than was asked"));
        }
        Ok(answer)
    }

    /// After an error nothing is where it should be.
    pub(super) fn note<T>(&mut self, result: Result<T>) -> Result<T> {
        self.broken |= result.is_err();
        result
    }

    /// Sends a frame to the next stage; where that fails, says why.
    fn send(&mut self, frame: Vec<u8>) -> Result<()> {
        let Some(link) = &self.link else { return Err(Error::new("a stage without a next one; this is a bug")) };
        link.send(frame).map_err(|error| match &mut self.processes {
            Some(processes) => processes.reason(error),
            None => error,
        })
    }
}
