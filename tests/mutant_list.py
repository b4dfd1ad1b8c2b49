"""Critical lines, what each is changed to, and the test that must fail then; see `mutants.py`.

A change is one that a hurried hand could make, and that would do harm without an error: a bound that is not there, a
condition turned round, a count that is not made. Of each test the list names only one, so that a trial takes seconds.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutant(NamedTuple):
    """One change.

    Attributes:
        name: what would be wrong, in words.
        file: relative to the tree.
        old: what stands in the file, exactly once.
        new: what stands there instead.
        test: of pytest, relative to the tree: a file, or file::function.
    """

    name: str
    file: str
    old: str
    new: str
    test: str


def _of(file: str, tests: str, *changes: tuple[str, str, str, str]) -> tuple[Mutant, ...]:
    """Changes (name, old, new, function) of one file that one file of tests is about."""
    return tuple(
        Mutant(name, f"streamdet/{file}", old, new, f"tests/{tests}::{function}")
        for name, old, new, function in changes
    )


MUTANTS: tuple[Mutant, ...] = (
    # ---- captures and sources ----
    *_of(
        "capture/thread.py", "integration/capture/test_thread.py",
        ("backoff does not grow", "min(self._longest_seconds, seconds * 2)", "min(self._longest_seconds, seconds)",
         "test_backoff_doubles_up_to_its_limit_and_resets"),
        ("unexpected error under another reason", "SourceError(Reason.INTERNAL_ERROR, describe(error))",
         "SourceError(Reason.DECODE_ERROR, describe(error))",
         "test_an_unexpected_error_is_a_failure_of_its_stream_alone"),
        ("frame lost without a count", "self._metrics.frame_dropped(self._config.name, Drop.INTERNAL_ERROR)", "pass",
         "test_a_frame_that_cannot_be_put_is_in_the_ledger"),
        ("old frame takes down a new connection", "if seq <= self._connected_after_seq or self._condemned is not None:",
         "if self._condemned is not None:",
         "test_a_frame_that_cannot_be_used_takes_its_connection_down_and_no_later_one"),
        ("stall after a late read is forgotten", "if overdue and not self.stopping:", "if overdue and self.stopping:",
         "test_read_that_ignores_an_interrupt_is_reported_in_time_and_given_up_when_it_returns"),
        ("damaged pictures not counted", "if held.has_picture:", "if not held.has_picture:",
         "test_damaged_pictures_are_counted_and_not_handed_on"),
        ("source stays open", "            source.close()\n", "            pass\n",
         "test_states_of_a_stream_that_breaks_and_comes_back"),
    ),
    *_of(
        "capture/watchdog.py", "unit/capture/test_watchdog.py",
        ("stall reported again and again", "                self._due = None\n                self._overdue = True",
         "                self._overdue = True", "test_what_is_late_is_reported_once_and_others_are_not"),
    ),
    *_of(
        "capture/sources/soundness.py", "unit/capture/test_soundness.py",
        ("smeared pictures after a gap",
         "if frame.key_frame or self._holds_since is None:\n            self._holds_since",
         "if True:\n            self._holds_since", "test_nothing_smeared_is_shown"),
        ("pictures in parts are damaged", "ready = self._parts.add(packet, start)", "ready = [(packet, start, False)]",
         "test_pictures_that_come_in_parts_are_whole"),
    ),
    *_of(
        "capture/sources/picture.py", "unit/capture/test_picture.py",
        ("picture of any size", "> MAX_SIDE_PIXELS or width * height > MAX_PIXELS",
         "> MAX_SIDE_PIXELS and width * height > MAX_PIXELS", "test_size_limit"),
    ),
    *_of(
        "capture/sources/picture.py", "integration/capture/test_pixel_formats.py",
        ("pixel format that cannot be converted", "if name not in CONVERTIBLE and name not in IN_HARDWARE:",
         "if name not in CONVERTIBLE and name in IN_HARDWARE:", "test_what_is_not_taken_is_refused"),
    ),
    *_of(
        "capture/sources/picture.py", "unit/detector/test_square_pixels.py",
        ("shape of pixels of a turned picture", "1 / aspect if quarter_turns % 2 else aspect", "aspect",
         "test_the_shape_of_pixels_turns_with_the_picture_and_is_believed_within_bounds"),
    ),
    *_of(
        "capture/load_limit.py", "integration/capture/test_load_limit.py",
        ("decoder takes more than a core", "if cores > MOST_CORES:", "if cores > 2 * MOST_CORES:",
         "test_a_stream_that_takes_a_whole_core"),
        ("flood of frames", "if self._left < 0:", "if self._left < -1e9:",
         "test_a_burst_passes_and_a_flood_does_not"),
    ),
    *_of(
        "capture/sources/http_client.py", "integration/capture/test_hls.py",
        ("redirection to another kind of server", "        require(self._schemes, newurl)\n",
         '        require((*self._schemes, "http", "ftp", "file"), newurl)\n',
         "test_no_redirection_leads_to_another_kind_of_server"),
    ),
    *_of(
        "capture/sources/http_client.py", "integration/capture/test_sources.py",
        ("verified playlist leads to http",
         '("https",) if kind is UrlKind.HTTPS and config.tls_verify else ("http", "https")',
         '("http", "https")',
         "test_every_piece_of_a_verified_playlist_is_verified"),
    ),
    *_of(
        "capture/sources/http_client.py", "integration/capture/test_mjpeg.py",
        ("login given to another server", "if self._login is not None and _server_of(req.full_url) == self._server:",
         "if self._login is not None:", "test_redirections_over_http"),
        ("control character of a redirection", "if has_control(unquote(address)):", "if has_control(address):",
         "test_redirections_over_http"),
    ),
    # ---- queue, ledger, inference ----
    *_of(
        "monitoring/ledger.py", "unit/monitoring/test_ledger.py",
        ("frames on their way of a stream that comes back", "self._in_flight_of_removed.pop(stream, 0)", "0",
         "test_a_stream_that_comes_back_takes_over_the_frames_still_on_their_way"),
        ("drops count as on their way", " - sum(self.dropped.values())", "", "test_every_frame_is_somewhere"),
    ),
    *_of(
        "inference/batch_queue.py", "unit/inference/test_batch_queue.py",
        ("order by age alone", "key=lambda slot: (slot.virtual_time, slot.filled_at)",
         "key=lambda slot: slot.filled_at",
         "test_under_overload_shares_follow_the_weights"),
        ("frame twice as old as allowed", "age_seconds > self.rules.max_frame_age_seconds",
         "age_seconds > 2 * self.rules.max_frame_age_seconds", "test_a_frame_that_is_too_old_does_not_leave"),
        ("superseded frame without a count", "return Drop.SUPERSEDED", "return None", "test_the_newest_frame_wins"),
        ("pause saves virtual time up", "self._virtual_time - _SAVED_VIRTUAL_TIME",
         "self._virtual_time - 100 * _SAVED_VIRTUAL_TIME",
         "test_a_pause_saves_nothing_up"),
        ("burst after a pause", "_LATE_PERIODS = 1.0", "_LATE_PERIODS = 100.0", "test_no_burst_follows_a_pause"),
        ("frame kept of a removed stream", "self._closed or self._slots.get(frame.stream) is not slot:",
         "self._closed:", "test_a_blocked_put_wakes_at_the_end"),
    ),
    *_of(
        "inference/thread.py", "unit/inference/test_thread.py",
        ("whole batch again when memory ran out", "self._batch_limit = (size + 1) // 2", "self._batch_limit = size",
         "test_when_memory_runs_out_the_batch_is_halved_and_no_frame_lost"),
        ("lost accelerator is any error", "raise DeviceLostError(message) from error\n            elif self._alone",
         "raise DetectorError(message) from error\n            elif self._alone",
         "test_a_dead_cuda_context_ends_the_process_with_its_own_code"),
        ("worker hidden by others that go on", "return max((now - moment for moment in began), default=0.0)",
         "return min((now - moment for moment in began), default=0.0)",
         "test_a_worker_that_hangs_is_seen_whatever_others_do"),
    ),
    *_of(
        "inference/sequence.py", "unit/inference/test_thread.py",
        ("results overtake each other", "while results and results[0].is_done:", "while results:",
         "test_results_of_several_workers_leave_in_the_order_of_the_frames"),
        ("results held without measure", "self._held < self._max_held and ", "",
         "test_few_results_are_held_for_one_that_hangs"),
    ),
    # ---- detector ----
    *_of(
        "detector/stages/postprocess.py", "unit/detector/test_pipeline.py",
        ("classes suppress each other", "candidates.classes, self._overlap)",
         "torch.zeros_like(candidates.classes), self._overlap)", "test_frames_of_different_sizes_equal_torchvision"),
        ("boxes not scaled to the frame", "[scale_x, scale_y, scale_x, scale_y]",
         "[scale_y, scale_x, scale_y, scale_x]",
         "test_frames_of_different_sizes_equal_torchvision"),
    ),
    *_of(
        "detector/weights/thresholds.py", "unit/detector/test_pipeline.py",
        ("threshold of a label", "own.get(label, settings.score_threshold)", "settings.score_threshold",
         "test_labels_and_thresholds_select"),
    ),
    *_of(
        "detector/stages/proposals.py", "unit/detector/test_proposals.py",
        ("proposals too few", "if len(keep) < wanted and len(boxes) > some:", "if len(keep) > wanted:",
         "test_the_likeliest_are_the_same_however_many_are_tried"),
    ),
    *_of(
        "detector/stages/square_pixels.py", "unit/detector/test_square_pixels.py",
        ("boxes in square pixels", "(x1 * across, y1 * down, x2 * across, y2 * down)", "(x1, y1, x2, y2)",
         "test_boxes_come_back_in_pixels_of_the_source_frame"),
    ),
    *_of(
        "detector/agreement.py", "integration/detector/test_trial.py",
        ("missing detections are equal", " and not alone", "",
         "test_fp32_must_be_equal_and_others_may_differ_a_little"),
        ("scores far apart are alike", "score <= _SCORE_DIFFERENCE and", "score <= 10 * _SCORE_DIFFERENCE and",
         "test_alike_is_what_keeps_nearly_all_detections"),
    ),
    *_of(
        "detector/choice.py", "integration/detector/test_trial.py",
        ("wrong answer is taken", " for r in results if r.outcome is Outcome.AGREES]", " for r in results]",
         "test_a_wrong_answer_is_not_taken_however_fast_it_comes"),
        ("largest batch and not the fewest", "batch = min(t.batch for t in timings",
         "batch = max(t.batch for t in timings",
         "test_a_batch_is_taken_where_it_gains_much_and_no_larger_than_that"),
    ),
    *_of(
        "detector/canvases.py", "integration/detector/test_canvases.py",
        ("canvas is used that is not proven", "if self._proven is None or canvas in self._proven:\n            return",
         "if True:\n            return", "test_a_canvas_is_used_where_it_is_proven_and_the_smallest_larger_one_else"),
        ("size is admitted before its trial", "if self._canvases.fit(canvas) is not None:\n                return True",
         "return True", "test_a_size_that_fits_nowhere_waits_for_its_trial"),
    ),
    *_of(
        "detector/state.py", "integration/detector/test_trial.py",
        ("file of others is believed", "and not about.st_mode & 0o022", "",
         "test_a_file_that_others_can_write_a_link_or_a_fifo_is_not_read"),
    ),
    *_of(
        "detector/trial.py", "integration/detector/test_trial.py",
        ("weights not in the key of the trial", '        "weights": weights,\n', "",
         "test_every_fact_that_matters_is_in_the_key"),
        ("trial goes on after a stop",
         "            if stopping():\n                raise Interrupted\n            ready",
         "            ready", "test_a_stop_ends_the_trial_at_once_and_all_its_processes"),
    ),
    *_of(
        "detector/weights/state_dict.py", "integration/detector/test_weights.py",
        ("classifier of any size", "if not 2 <= classifier.shape[0] <= MAX_CLASSES:",
         "if not 2 <= classifier.shape[0]:", "test_a_classifier_of_odd_size_is_refused"),
        ("infinite weights", "not bool(torch.isfinite(t).all())", "bool(torch.isnan(t).any())",
         "test_weights_that_are_no_numbers_are_refused"),
        ("code in weights", "weights_only=True", "weights_only=False", "test_code_in_a_pth_never_runs"),
    ),
    # ---- analytics ----
    *_of(
        "analytics/zones.py", "unit/analytics/test_zones.py",
        ("zone without a margin", "return self._distance(place.at(self._anchor)) >= margin",
         "return self._distance(place.at(self._anchor)) >= 0.0", "test_a_zone_is_entered_and_left_by_a_clear_step"),
        ("line without a margin", "if distance(self._start, self._end, point) < place.margin:",
         "if distance(self._start, self._end, point) < 0.0:", "test_who_trembles_on_the_line_crosses_it_once"),
        ("mask hides nothing", "if not place.is_hidden:", "if place is not None:",
         "test_masks_hide_what_stands_in_them"),
        ("shapes are compared too seldom", "return moved < self._room", "return moved < 3 * self._room",
         "test_shapes_that_are_compared_now_and_then_give_the_same_as_in_every_frame"),
        ("in is out", 'return "in" if was < 0 else "out"', 'return "in" if was > 0 else "out"',
         "test_in_is_from_left_to_right_of_the_line"),
    ),
    *_of(
        "analytics/tracker.py", "unit/analytics/test_tracker.py",
        ("track kept for too long", "if lost_seconds > max_lost_seconds:", "if lost_seconds > 2 * max_lost_seconds:",
         "test_who_is_hidden_for_a_short_time_keeps_the_id"),
        ("any label continues a track", "rank -= _OTHER_LABEL_COSTS", "rank -= 0.0",
         "test_another_label_is_another_object_unless_it_lies_in_the_same_place"),
        ("unsure detection begins a track", "elif found.score >= self.start_score:", "elif found.score >= 0.0:",
         "test_an_unsure_detection_continues_a_track_and_begins_none"),
        ("stops while frames are dropped", "return aside / sizes if aside <= sizes else None", "return None",
         "test_who_turns_between_two_frames_that_are_far_apart_keeps_the_id"),
        ("presentation times run ahead", "and not runs_ahead:", "or runs_ahead:",
         "test_the_clock_does_not_jump_with_that_of_a_camera"),
    ),
    *_of(
        "analytics/objects.py", "unit/analytics/test_objects.py",
        ("hidden objects end", "or now - one.seen > self._max_lost_seconds", "or now > one.seen",
         "test_who_is_hidden_or_not_shown_for_a_while_is_the_same_object_in_the_same_visit"),
        ("cut boxes are the best ones", "rank = is_whole + found.score", "rank = found.score",
         "test_the_best_view_is_large_sure_and_whole"),
        ("a mistake is an object", "if self.is_confirmed or not track.is_confirmed():", "if self.is_confirmed:",
         "test_what_is_seen_once_or_for_a_moment_is_no_object"),
    ),
    # ---- events and their delivery ----
    *_of(
        "analytics/rules.py", "unit/analytics/test_rules.py",
        ("an object raises a second alert", "return one.object_id in self._done[rule.name]", "return False",
         "test_what_was_raised_is_not_raised_again_after_a_reload"),
        ("hidden objects raise alerts", "if one.seen == moment.now and self", "if self",
         "test_a_hidden_object_keeps_its_time_and_is_waited_for"),
        ("a pause between alerts is not kept", "if 0 <= at - before < rule.cooldown_seconds:", "if at < before:",
         "test_within_the_pause_alerts_are_counted_and_never_raised"),
        ("a clock that is set back silences a rule", "if 0 <= at - before < rule", "if at - before < rule",
         "test_a_clock_that_is_set_back_does_not_silence_a_rule"),
        ("time without frames counts as none there", "if step <= longest_pause_seconds:", "if step >= 0:",
         "test_time_without_frames_does_not_count_as_none_there"),
        ("a flicker ends a count", "if moment.now - self._fewer_since >= _SETTLED_SECONDS:", "if True:",
         "test_an_object_that_steps_out_for_a_moment_does_not_raise_a_second_alert"),
        ("who has left counts as there", "if moment.now - one.seen <= _COUNTED_SECONDS]", "]",
         "test_an_object_that_has_left_is_not_at_once_with_the_next_one"),
        ("a night ends at midnight", "if is_over_midnight and day_before in self._days and minute < end:", "if False:",
         "test_times_and_days_are_those_of_a_clock_on_the_wall"),
        ("the end of a stream clears nothing", "                watch.clear_all(moment)\n            else:",
         "                pass\n            else:", "test_the_end_of_a_stream_clears_every_alert_once"),
    ),
    *_of(
        "analytics/past.py", "unit/analytics/test_past.py",
        ("objects of an earlier run go on", "if event.epoch != stream.epoch:", "if False:",
         "test_a_new_epoch_and_a_pause_end_what_was_there_and_the_pause_between_alerts_goes_on"),
    ),
    *_of(
        "wire/encode.py", "unit/wire/test_wire.py",
        ("boxes not clipped", "return float(highest) if value >= highest else", "return",
         "test_boxes_are_clipped_and_rounded_and_never_nan"),
        ("the surest are left out", "key=lambda found: found.score, reverse=True)", "key=lambda found: found.score)",
         "test_the_surest_detections_come_first_and_stay"),
        ("the oldest changes stay", "in event.changes[-MAX_CHANGES:]", "in event.changes[:MAX_CHANGES]",
         "test_the_largest_object_and_alert_fit_into_a_message"),
        ("path loses its end", "path[index * last // most]", "path[index]",
         "test_a_path_that_is_too_long_is_thinned_and_keeps_its_ends"),
    ),
    *_of(
        "wire/decode.py", "unit/wire/test_wire.py",
        ("box outside of the frame is read", "0 <= x1 < x2 <= width and", "0 <= x1 < x2 and",
         "test_a_wrong_value_is_one_clear_error"),
    ),
    *_of(
        "delivery/events.py", "integration/delivery/test_publisher.py",
        ("repeated state has a new number", ", repeats_seq=event.seq\n", "\n",
         "test_states_are_repeated_with_their_number_and_not_kept"),
        ("repeated state is kept", 'is_new and kind != "preview")', 'kind != "preview")',
         "test_states_are_repeated_with_their_number_and_not_kept"),
        ("secret in the detail of a state", "detail=redact(status.detail)", "detail=status.detail",
         "test_secrets_do_not_leave"),
    ),
    *_of(
        "delivery/events.py", "integration/delivery/test_occurrences.py",
        ("object without a begin is published", 'if before is None and change.phase != "begin":', "if False:",
         "test_an_object_whose_begin_cannot_be_encoded_has_no_other_events"),
        ("what the analytics forgot never ends", "return [*ended, *self._end_rest(stream, reason)]", "return ended",
         "test_an_error_of_the_analytics_ends_objects_and_they_begin_again"),
        ("slow detection counts as silence", "if self._metrics.ledger.is_on_its_way(stream):", "if False:",
         "test_a_stream_is_not_silent_while_frames_are_on_their_way"),
        ("objects of the old url go on", "config.paused or config.url != before.url", "config.paused",
         "test_another_url_is_another_scene_and_other_zones_are_not"),
        ("pause of a rule ends at a restart", "analytics.restore_alerts(self._raised_at[stream])", "pass",
         "test_what_an_earlier_epoch_could_not_end_ends_in_the_next_one_once"),
    ),
    *_of(
        "delivery/publisher.py", "integration/delivery/test_occurrences.py",
        ("objects are left open at a stop", "self._send_all(self._writer.end_all(EndReason.STOPPING))", "pass",
         "test_a_stop_ends_every_object"),
        ("sent before it is on disk", "if first.settled > settled and", "if False and",
         "test_a_subscriber_gets_of_objects_and_alerts_only_what_is_on_disk"),
    ),
    *_of(
        "delivery/publisher.py", "integration/delivery/test_publisher.py",
        ("stream stays forgotten", "self._removed.discard(status.stream)", "pass",
         "test_a_forgotten_stream_is_silent_until_it_is_added_again"),
    ),
    *_of(
        "delivery/replay.py", "integration/delivery/test_replay.py",
        ("ring says that it has what it dropped", "self._first[old[0]] = old[1] + 1", "self._first[old[0]] = old[1]",
         "test_the_ring_keeps_the_newest_within_its_bounds"),
        ("last event left out", "more=next_seq <= last,", "more=next_seq < last,",
         "test_the_one_event_that_is_left_is_announced"),
    ),
    *_of(
        "delivery/sockets.py", "integration/delivery/test_replay.py",
        ("no pause after requests", "pause = self._request_time.wait_seconds()", "pause = 0.0",
         "test_requests_take_little_of_the_time"),
        ("answers cost no time", "self._request_time.worked(time.thread_time() - began)", "pass",
         "test_sending_answers_counts_as_time_for_requests"),
    ),
    *_of(
        "delivery/spool.py", "integration/delivery/test_spool.py",
        ("first request of a client is kept", "of_client[question] = request, reply",
         "of_client.setdefault(question, (request, reply))",
         "test_a_request_repeated_with_another_end_is_answered_once_and_as_it_was_asked_last"),
        ("client comes first again", "self._fetches[client] = of_client  # behind all others",
         "self._fetches = {client: of_client, **self._fetches}",
         "test_all_that_a_client_asks_is_answered_in_order_and_clients_take_turns"),
    ),
    *_of(
        "delivery/spool.py", "integration/delivery/test_spool.py",
        ("events kept for too long", "self._clock.wall() - self._max_age_seconds",
         "self._clock.wall() - 10 * self._max_age_seconds", "test_old_events_are_deleted"),
        ("wrong clock deletes", "if now is not None:", "if True:",
         "test_a_start_with_a_clock_that_is_wrong_deletes_nothing"),
    ),
    *_of(
        "delivery/event_store.py", "integration/delivery/test_spool.py",
        ("spool above its size", "return self._max_bytes - self._max_log_bytes", "return 4 * self._max_bytes",
         "test_it_stays_within_its_bounds_and_keeps_the_newest"),
        ("log above its size", "if is_busy:", "if False:",
         "test_a_program_that_reads_for_long_does_not_make_it_larger"),
        ("ended object ends again", 'database.executemany("DELETE FROM newest WHERE id = ?", ended)', "pass",
         "test_it_knows_what_has_begun_and_not_ended_over_restarts"),
        ("lost end ends again", "= dict.fromkeys(self._ended)\n", "= {}\n",
         "test_an_end_that_found_no_room_is_not_published_again_after_a_restart"),
        ("end of an epoch is not known", "return (kept, False) if end is None else (end.get(topic, kept), True)",
         "return kept, False", "test_what_was_kept_is_there_after_restarts_epoch_by_epoch"),
        ("damage is not looked for", 'if result != "ok":', "if False:", "test_damage_is_found_at_the_start"),
        ("converted events come last", "first = self._first_old_id(database) if are_old else self._next_id",
         "first = self._next_id", "test_a_kill_while_segments_are_taken_over_loses_and_doubles_nothing"),
    ),
    *_of(
        "delivery/segments.py", "integration/delivery/test_spool.py",
        ("torn record is believed", " or crc32(memoryview(data)[offset + _CHECKED_FROM : end]) != checksum", "",
         "test_a_record_with_a_wrong_bit_ends_a_segment"),
    ),
    *_of(
        "security/files.py", "integration/delivery/test_spool.py",
        ("file that others can write", "status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)",
         "status.st_mode & stat.S_ISVTX",
         "test_a_file_that_is_damaged_or_foreign_is_set_aside"),
    ),
    *_of(
        "client/gaps.py", "integration/client/test_subscription.py",
        ("gap is one too large", "missing = event.seq - last_seq - 1", "missing = event.seq - last_seq",
         "test_a_late_joiner_has_no_gap_and_lost_events_are_one"),
        ("object of another label", "return (event,) if event.object.label in self._labels else ()", "return (event,)",
         "test_labels_choose_objects_and_alerts"),
    ),
    # ---- pictures ----
    *_of(
        "delivery/file_store.py", "integration/delivery/test_file_store.py",
        ("store above its size", "self._used_bytes + needed_bytes > self._limits.max_bytes", "False",
         "test_ten_thousand_files_stay_within_the_limit_and_the_newest_are_kept"),
        ("wrong clock deletes pictures", "if old and not is_trusted:", "if False:",
         "test_a_clock_that_jumped_deletes_nothing_for_its_age"),
        ("any path is an id", "return _ID.fullmatch(text) is not None", "return bool(text)",
         "test_ids_sort_by_time_hold_the_stream_and_lead_nowhere_else"),
        ("foreign pictures are taken", "or why_foreign(status) is not None", "",
         "test_what_is_not_its_own_is_left_alone_and_reported_once"),
    ),
    *_of(
        "delivery/privacy.py", "unit/delivery/test_privacy.py",
        ("hidden object is shown", "until = now + of.max_lost_seconds", "until = now",
         "test_an_object_is_hidden_where_it_was_last_until_its_track_is_given_up"),
        ("flat side of a mask is shown", "thickness=2", "thickness=1",
         "test_every_pixel_whose_centre_a_mask_holds_is_black_in_every_part"),
    ),
    *_of(
        "delivery/events.py", "integration/delivery/test_published_pictures.py",
        ("view from before a mask", "hides_others = before is not None", "hides_others = before is None",
         "test_after_a_change_of_what_is_hidden_no_view_from_before_leaves"),
    ),
    *_of(
        "delivery/pictures.py", "integration/delivery/test_pictures.py",
        ("event names another frame", 'self._best[object_id] = _Encoded(view.info(""), jpeg)',
         'self._best[object_id] = _Encoded((before.info if before else view.info("")), jpeg)',
         "test_views_that_are_no_better_cost_nothing_and_better_ones_at_most_two_a_second"),
        ("frames wait without limit", "while self._waiting_bytes() > _MAX_WAITING_BYTES", "while False",
         "test_while_encoding_is_slow_nothing_waits_and_the_newest_pictures_win"),
    ),
    # ---- who may read ----
    *_of(
        "delivery/connections.py", "integration/delivery/test_connections.py",
        ("any key is let in", "if key in self._clients.names():", "if key:",
         "test_a_client_that_is_not_allowed_gets_nothing_until_it_is"),
        ("revoked key stays", "return shown.key not in self._clients.newest", "return False",
         "test_revoking_ends_the_connection_of_that_client_and_of_no_one_else"),
        ("key of an earlier connection", "if shown is None or shown.number <= answered_before:", "if shown is None:",
         "test_what_another_said_over_the_same_descriptor_vouches_for_no_one"),
    ),
    *_of(
        "delivery/connections.py", "integration/delivery/test_connections.py",
        ("one address takes all connections", "elif len(of_host) > max(self._max_connections // 2, 1):",
         "elif len(of_host) > 2 * self._max_connections:", "test_one_address_cannot_take_all_connections"),
    ),
    *_of(
        "security/curve.py", "unit/security/test_allowed_clients.py",
        ("missing directory lets all in", "            paths = []\n", "            return\n",
         "test_a_directory_that_is_gone_lets_no_one_in"),
    ),
    *_of(
        "security/curve.py", "unit/security/test_curve.py",
        ("keys of another kind", "if written_kind != kind:", 'if written_kind == "":',
         "test_the_keys_of_the_two_sides_cannot_be_mistaken"),
    ),
    *_of(
        "security/files.py", "integration/security/test_files.py",
        ("file that its group can read", "stat.S_IMODE(mode) & 0o077)", "stat.S_IMODE(mode) & 0o007)",
         "test_who_else_can_read_a_file"),
        ("file written in place", 'path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")', "path",
         "test_a_failing_write_leaves_the_old_file_and_nothing_else"),
        ("planted link", "os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW", "os.O_CREAT",
         "test_a_link_at_the_place_of_the_new_content_is_not_followed"),
    ),
    *_of(
        "security/endpoints.py", "integration/security/test_endpoints.py",
        ("private network counts as this machine", "ip_address(host).is_loopback",
         "ip_address(host).is_private",
         "test_what_other_machines_can_reach_is_known"),
    ),
    *_of(
        "security/redact.py", "unit/security/test_redact.py",
        ("password of a login alone", "values |= {password, base64", "values |= {base64",
         "test_the_password_of_a_remembered_login_is_masked_alone_and_its_user_is_not"),
        ("forget a secret in use", "                del _remembered[secret]\n", "                continue\n",
         "test_of_many_changed_passwords_the_latest_and_those_in_use_are_remembered"),
        ("secret of a query", "text = _QUERY.sub(_mask_value, text)\n", "", "test_a_secret_query_value_never_shows"),
        ("login with an @ in its password", 'url.rfind("@")', 'url.find("@", scheme.end())',
         "test_masks_what_looks_like_a_secret"),
    ),
    *_of(
        "security/limits.py", "integration/web/test_server.py",
        ("wrong tries from all addresses", "_wait(self._all, MAX_TRIES_OF_ALL, now)",
         "_wait(self._all, 100 * MAX_TRIES_OF_ALL, now)",
         "test_all_together_may_try_no_more_than_sixty_times_a_minute"),
        ("wrong tries from one address", "_wait(own, MAX_TRIES, now)", "_wait(own, 100 * MAX_TRIES, now)",
         "test_tries_are_counted_per_client_and_forgotten_in_time"),
    ),
    *_of(
        "http/access.py", "integration/service/test_page_login.py",
        ("any name with the password", '"surrogateescape")) and right_name', '"surrogateescape"))',
         "test_half_of_a_login_is_none"),
    ),
    *_of(
        "config/models.py", "integration/service/test_page_login.py",
        ("password without encryption", "self.tls_key_file is not None and self.password_file is not None",
         "self.tls_key_file is not None or self.password_file is not None",
         "test_off_this_machine_only_with_both_or_when_asked_to_be_insecure"),
    ),
    *_of(
        "http/access.py", "integration/service/test_pages.py",
        ("any Host header", 'return name == "localhost" or name in names',
         'return name.startswith("localhost") or name in names',
         "test_names_that_are_not_ours_are_refused"),
    ),
    *_of(
        "http/server.py", "integration/service/test_pages.py",
        ("drip-fed request has no deadline", "if self._timer is None and self.conn.their_state is h11.IDLE:",
         "if self.conn.their_state is h11.IDLE:", "test_a_slow_client_is_cut_off_however_busily_it_drips"),
        ("answers without measure", "if self._open.answering > self._open.limits.answering and",
         "if self._open.answering > 100 + self._open.limits.answering and",
         "test_more_answers_at_the_same_time_than_may_be_are_refused"),
    ),
    *_of(
        "http/server.py", "integration/web/test_server.py",
        ("one address keeps all connections", "if len(same) > self.limits.waiting_per_address:",
         "if len(same) > 100 * self.limits.waiting_per_address:",
         "test_a_connection_that_is_cut_is_the_oldest_of_the_address_with_the_most"),
        ("each address of a network for itself", "IPv6Network((parsed, 64)", "IPv6Network((parsed, 128)",
         "test_a_client_is_counted_by_its_network"),
    ),
    *_of(
        "http/access.py", "integration/web/test_server.py",
        ("form of another site", '"none") not in ("same-origin", "none")',
         '"none") not in ("same-origin", "none", "same-site")',
         "test_other_sites_are_refused"),
    ),
    *_of(
        "web/access.py", "integration/web/test_server.py",
        ("page without a login", "if path in _OPEN_PATHS or is_open:",
         "if path not in _OPEN_PATHS or is_open:",
         "test_without_the_password_there_is_nothing_to_see"),
    ),
    *_of(
        "web/access.py", "integration/web/test_server.py",
        ("address that the client writes", 'forwarded.rpartition(",")[2]', 'forwarded.partition(",")[0]',
         "test_a_guesser_behind_a_proxy_has_one_address"),
    ),
    *_of(
        "web/access.py", "integration/web/test_server.py",
        ("session without an end", "now - began > MAX_AGE_SECONDS or", "now - began > MAX_AGE_SECONDS and",
         "test_sessions_end_and_stay_few"),
    ),
    # ---- configuration and the service ----
    *_of(
        "config/addresses.py", "unit/config/test_problems.py",
        ("encoded control character of a URL", "url if scheme is None else unquote(url)", "url",
         "test_bad_input_ends_in_one_clear_line[encoded end of a text]"),
    ),
    *_of(
        "config/listening.py", "unit/config/test_load.py",
        ("port of two servers", "one.port == other.port != 0 and same_host", "one.port == other.port != 0",
         "test_the_same_port_on_different_addresses_is_no_clash"),
    ),
    *_of(
        "config/values.py", "unit/config/test_load.py",
        ("part of a byte", "if not math.isfinite(number) or not number.is_integer():", "if not math.isfinite(number):",
         "test_wrong_sizes_are_refused"),
    ),
    *_of(
        "config/last_good.py", "integration/config/test_last_good.py",
        ("what is not in force is kept", "load_config(self.path, text=text) == config",
         "load_config(self.path, text=text) is not None", "test_only_what_is_in_force_is_kept"),
    ),
    *_of(
        "service/streams.py", "integration/service/test_streams.py",
        ("half of a reload stays", "                self._queue.remove_stream(name)\n", "                pass\n",
         "test_without_memory_nothing_changes"),
        ("numbers begin again", "capture.begin(self._last_seqs.get(name, 0))", "capture.begin(0)",
         "test_frames_are_numbered_on_over_a_reconnect_and_a_removal"),
    ),
    *_of(
        "service/housekeeping.py", "unit/service/test_housekeeping.py",
        ("watchdog fed by a daemon that hangs",
         "if now - self._inference.seconds_without_progress(now) > self._fed_at:", "if now > self._fed_at:",
         "test_one_worker_that_hangs_starves_it_whatever_others_do"),
    ),
    *_of(
        "monitoring/systemd.py", "integration/monitoring/test_systemd.py",
        ("watchdog of another process", 'or pid not in {"", str(os.getpid())}', "", "test_the_watchdog_interval"),
        ("status with a line break", '" ".join(text.split())', "text",
         "test_a_status_cannot_smuggle_in_another_assignment"),
    ),
    *_of(
        "service/restart_delay.py", "unit/service/test_restart_delay.py",
        ("delay without a bound", ", MAX_DELAY_SECONDS) - 1.0", ", 1e6) - 1.0",
         "test_the_delay_grows_with_each_failure_up_to_a_minute"),
    ),
    *_of(
        "service/daemon.py", "e2e/test_daemon.py",
        ("exit code of any error", "return error.exit_code", "return EXIT_FAILURE",
         "test_an_error_of_ours_gives_its_exit_code"),
    ),
    *_of(
        "service/control/unix_socket.py", "integration/service/test_control_server.py",
        ("any user changes the streams", "if peer is None or not self._may_ask(peer):", "if peer is None:",
         "test_others_are_refused_whatever_the_mode_says_and_members_of_the_group_are_not"),
    ),
    *_of(
        "http/access.py", "integration/service/test_control_server.py",
        ("any site changes the streams", "if self._scheme is not None and is_from_another_site(",
         "if self._scheme is None and is_from_another_site(",
         "test_over_tcp_a_browser_of_another_site_changes_nothing"),
    ),
    *_of(
        "service/control/api.py", "integration/service/test_control_server.py",
        ("any machine changes the streams", "    if not is_loopback(host):\n", "    if not host:\n",
         "test_other_machines_are_not_let_in_without_both"),
        ("any form changes the streams", 'over_tcp and request.method == "POST"', "over_tcp and False",
         "test_over_tcp_a_browser_of_another_site_changes_nothing"),
    ),
    *_of(
        "http/server.py", "integration/service/test_control_server.py",
        ("body without end", "if len(body) > limit:", "if len(body) > 100 * limit:",
         "test_what_cannot_be_read_is_one_problem_and_the_next_request_is_served"),
    ),
    # ---- training ----
    *_of(
        "training/dataset.py", "unit/training/test_dataset.py",
        ("empty box", "if w <= 0 or h <= 0:", "if w <= 0 and h <= 0:",
         "test_all_faults_are_reported_at_once_and_can_be_skipped"),
        ("two pictures of one number", 'elif image["id"] in unique:', 'elif image["id"] is None:',
         "test_all_faults_are_reported_at_once_and_can_be_skipped"),
    ),
    *_of(
        "training/losses.py", "unit/training/test_losses.py",
        ("ignored boxes are background", "> _IGNORE_OVERLAP", "> 1 + _IGNORE_OVERLAP",
         "test_nothing_is_learned_in_ignored_boxes"),
    ),
    *_of(
        "training/losses.py", "unit/training/test_losses.py",
        ("unlabelled class is background", "    possible = ~labelled\n", "    possible = labelled & False\n",
         "test_background_loss_lets_unlabelled_classes_be"),
    ),
    *_of(
        "training/metrics.py", "unit/training/test_metrics.py",
        ("class counts where it is not labelled", "        if s.labelled[label]\n", "",
         "test_a_class_counts_only_where_it_is_labelled"),
    ),
)  # fmt: skip
