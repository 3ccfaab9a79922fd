//! A leader that cannot lead asks for an election, where one can help.

use super::*;

fn epoch(number: u32) -> LeaderEpoch {
    LeaderEpoch::new(number).unwrap()
}

impl Pair {
    fn fill_disk(&mut self, i: usize) {
        let room = self.replicas[i].fs.used();
        self.replicas[i].fs.set_capacity(Some(room));
    }

    fn refused_for_want_of_room(&mut self, i: usize) {
        let refused = self.append(i, batch(7, self.next_sequence, 100), Acks::All);
        let no_room = Some(Err(ErrorCode::KafkaStorageError));
        assert_eq!(self.answer(i, refused), no_room);
    }
}

#[test]
fn a_leader_without_room_for_records_asks_for_another_and_serves_until_there_is_one() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 3);
    pair.fill_disk(0);
    pair.pass(1000);
    assert_eq!(pair.replicas[0].resigned, [], "nothing was refused yet");
    pair.refused_for_want_of_room(0);
    pair.pass(50);
    assert_eq!(pair.replicas[0].resigned, [epoch(1)]);
    pair.pass(4900);
    assert_eq!(pair.replicas[0].resigned.len(), 1, "it gives it time");
    pair.pass(100);
    assert_eq!(pair.replicas[0].resigned.len(), 2);
    pair.pass(9900);
    assert_eq!(pair.replicas[0].resigned.len(), 2, "and more each time");
    assert!(pair.partition(0).view().is_leader);
    assert!(pair.partition(0).view().is_short_of_space);

    pair.commit(None, 2, &[0, 1]);
    assert!(pair.partition(0).view().is_short_of_space);
    pair.replicas[0].fs.set_capacity(None);
    pair.commit(Some(1), 2, &[0, 1]);
    pair.pass(2000);
    pair.produce(1, 3);
    assert!(!pair.partition(0).view().is_short_of_space);
    assert_eq!(pair.replicas[0].resigned.len(), 2);
    assert_eq!(pair.replicas[1].resigned, []);
}

#[test]
fn a_leader_that_nobody_could_follow_leads_on() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 3);
    pair.commit(Some(0), 1, &[0]);
    pair.fill_disk(0);
    pair.refused_for_want_of_room(0);
    pair.pass(1000);
    assert_eq!(pair.replicas[0].resigned, []);
}

#[test]
fn a_leader_whose_log_is_damaged_asks_for_another() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 40);
    pair.partition(0).handle_damage("a test says so");
    pair.pass(50);
    assert_eq!(pair.replicas[0].resigned, [epoch(1)]);
    assert!(pair.partition(0).view().is_leader);
}

#[test]
fn one_that_could_not_begin_to_lead_asks_for_another() {
    let mut pair = Pair::new();
    pair.tell();
    pair.produce(0, 3);
    pair.fill_disk(1);
    pair.commit(None, 2, &[0, 1]);
    pair.commit(Some(1), 2, &[0, 1]);
    assert!(!pair.partition(1).view().is_leader);
    pair.pass(50);
    assert_eq!(pair.replicas[1].resigned, [epoch(2)]);
    assert!(pair.partition(1).view().is_short_of_space);
}
