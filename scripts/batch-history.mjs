// What became of each job of a batch, from its manifest alone: node scripts/batch-history.mjs MANIFEST
// One JSON object a line, in the order of the prompts: index, state, host, attempts, seconds, file.
import { readFileSync } from 'node:fs';

const text = readFileSync(process.argv[2], 'utf8');
const jobs = new Map();
for (const line of text.slice(0, text.lastIndexOf('\n') + 1).split('\n')) {
  const { type, jobId, index, attempt, host, result, path, error } = parse(line);
  if (type === 'job') jobs.set(jobId, { index, state: 'unfinished', attempts: new Set() });
  const job = jobs.get(jobId);
  if (job === undefined) continue;
  if (type === 'sent') job.attempts.add(attempt); // a take that was refused gives its number to the next one
  if (type === 'saved')
    Object.assign(job, { state: 'done', host, seconds: Math.round(result.runMs / 10) / 100, file: path });
  if (type === 'failed') Object.assign(job, { state: 'failed', error: `${error.code}: ${error.message}` });
  if (type === 'cancelled') job.state = 'cancelled';
}
for (const { attempts, ...job } of [...jobs.values()].sort((a, b) => a.index - b.index)) {
  console.log(JSON.stringify({ ...job, attempts: attempts.size }));
}

function parse(line) {
  try {
    return JSON.parse(line);
  } catch {
    return {}; // damaged or torn: what it said is not known
  }
}
