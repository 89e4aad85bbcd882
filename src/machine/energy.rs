//! The energy that GPUs use: their power, integrated over polls on the monotonic clock.
//!
//! The power at a poll counts for the time since the poll before. Where it was unknown at one of
//! the two, the time between them does not count: a suspended GPU uses little.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::snapshot::Gpu;

/// The energy that each GPU has used while its power was known, by index.
#[derive(Debug, Default)]
pub struct EnergyMeter(BTreeMap<String, GpuEnergy>);

#[derive(Debug, Default)]
struct GpuEnergy {
    joules: f64,
    /// The last poll, if the power was known then.
    known_at: Option<Instant>,
}

impl EnergyMeter {
    /// Takes the power of all GPUs at `now`.
    pub fn update(&mut self, now: Instant, gpus: &[Gpu]) {
        let watts: BTreeMap<&str, f64> = gpus
            .iter()
            .filter_map(|gpu| Some((gpu.index.as_str(), gpu.power?)))
            .collect();
        for index in watts.keys() {
            self.0.entry((*index).to_owned()).or_default();
        }
        for (index, energy) in &mut self.0 {
            let watts = watts.get(index.as_str());
            if let (Some(watts), Some(then)) = (watts, energy.known_at) {
                energy.joules += watts * now.saturating_duration_since(then).as_secs_f64();
            }
            energy.known_at = watts.map(|_| now);
        }
    }

    /// Sets the energy of each GPU whose power is known.
    pub fn fill(&self, gpus: &mut [Gpu]) {
        for gpu in gpus.iter_mut().filter(|gpu| gpu.power.is_some()) {
            gpu.energy = self.0.get(&gpu.index).map(|energy| energy.joules);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The energy of the GPUs 0 and 1 after polls that found this power, each so many seconds
    /// after the start.
    fn energy(polls: &[(u64, [Option<f64>; 2])]) -> [Option<f64>; 2] {
        let start = Instant::now();
        let mut meter = EnergyMeter::default();
        let mut gpus = [Gpu::default(), Gpu::default()];
        for (second, watts) in polls {
            for (index, gpu) in gpus.iter_mut().enumerate() {
                gpu.index = index.to_string();
                (gpu.power, gpu.energy) = (watts[index], None);
            }
            meter.update(start + Duration::from_secs(*second), &gpus);
        }
        meter.fill(&mut gpus);
        gpus.map(|gpu| gpu.energy)
    }

    #[test]
    fn energy_is_power_times_the_time_between_polls() {
        let first = (0, [Some(50.0), Some(10.0)]);
        assert_eq!(energy(&[first]), [Some(0.0), Some(0.0)]);
        // Polls need not be equally far apart.
        let polls = [
            first,
            (5, [Some(100.0), Some(10.0)]),
            (7, [Some(300.0), Some(10.0)]),
        ];
        assert_eq!(energy(&polls), [Some(1100.0), Some(70.0)]);
    }

    #[test]
    fn time_of_unknown_power_does_not_count() {
        let known = |second, watts| (second, [Some(watts), None]);
        let unknown = |second| (second, [None, None]);
        // Absent where the power is unknown, now or always.
        assert_eq!(energy(&[known(0, 50.0), unknown(5)]), [None, None]);
        // Kept, and no less than before, once it is known again.
        let polls = [
            known(0, 50.0),
            known(2, 50.0),
            unknown(4),
            known(3600, 80.0),
            known(3601, 80.0),
        ];
        assert_eq!(energy(&polls), [Some(180.0), None]);
    }
}
