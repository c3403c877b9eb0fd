/** What the Worker's pure functions say of the cases on stdin, as JSON; the test knows what Python says. */

import { readFileSync } from "node:fs";

const [folder] = process.argv.slice(2);
const records = await import(`${folder}/records.js`);
const { queueKey } = await import(`${folder}/fields.js`);
const { batchStatus } = await import(`${folder}/batches.js`);
const { checkedAnswer } = await import(`${folder}/processors/llm.js`);
const cases = JSON.parse(readFileSync(0, "utf8"));

const outcome = { started: cases.now, completed: cases.now, duration_ms: 7 };
const taken = { tokens_in: 3, tokens_out: 1, cost: 0.25 };
const by = { claim: "c1", claimed: cases.now, lease: cases.lease };
process.stdout.write(
  JSON.stringify({
    statuses: cases.statuses.map((status) => ({
      small: records.small(status),
      lapsed: records.hasLapsed(records.small(status), cases.now),
      place: queueKey("p", "page_1", status.queued ?? {}),
      claimed: records.asClaimed(status, by),
      done: records.asEnded(records.asClaimed(status, by), {
        ...outcome,
        changes: 2,
        confidence: 0.5,
      }),
      failed: records.asEnded(records.asClaimed(status, by), {
        ...outcome,
        error: "é".repeat(400),
        code: "broken",
      }),
      queued: records.asQueued(status),
      spent: records.asQueued(status, taken),
      cancelled: records.asCancelled(status),
      lost: records.asLost(status, "gone"),
    })),
    answers: cases.answers.map((answer) => {
      try {
        return checkedAnswer(answer);
      } catch (error) {
        return error.code;
      }
    }),
    held: cases.held.map(([status, job]) => records.held(status, job)),
    batches: cases.batches.map(([intent, counts, superseded]) =>
      batchStatus(intent, counts, superseded),
    ),
  }),
);
