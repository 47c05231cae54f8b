import type { ServerResponse } from 'node:http';
import { expect, test } from 'vitest';
import { JobTally } from '../../../agent/job/job-tally.ts';
import { sendMetrics } from '../../../agent/http/metrics.ts';
import { FACTS } from './metric-facts.ts';

test('GPUs, models, jobs, errors, evictions and seconds are what Prometheus reads', async () => {
  const { head, text } = await scrape();
  expect(head).toMatchObject({ 'content-type': expect.stringContaining('text/plain') as string });
  for (const line of [
    'gantry_agent_info{version="0.1.0"} 1',
    'gantry_ready 1',
    'gantry_links 2',
    'gantry_problems 1',
    'gantry_gpu_memory_used_bytes{gpu="0",uuid="GPU-a"} 10485760000',
    'gantry_gpu_memory_foreign_bytes{gpu="0",uuid="GPU-a"} 1048576000',
    'gantry_gpu_utilisation_ratio{gpu="0",uuid="GPU-a"} 0.5',
    'gantry_model_state{model="qwen",state="ready"} 1',
    'gantry_model_jobs_running{model="qwen"} 1',
    'gantry_model_loads_total{model="qwen"} 2',
    'gantry_offered_jobs{model="qwen",class="batch"} 12',
    'gantry_jobs_total{model="qwen",outcome="done"} 3',
    'gantry_jobs_total{model="qwen",outcome="failed"} 2',
    'gantry_job_errors_total{model="qwen",code="INTERRUPTED"} 2',
    'gantry_job_run_seconds_total{model="qwen"} 4.5',
    'gantry_evictions_total{model="qwen",by="offload"} 4',
  ]) {
    expect(text.split('\n'), line).toContain(line);
  }
});

test('what a GPU does not report is left out, and is never 0', async () => {
  const { text } = await scrape();
  expect(text).not.toMatch(/^gantry_gpu_temperature_celsius\{/m);
  expect(text).not.toMatch(/^gantry_disk_free_bytes /m);
});

test('no words of anybody are in it, and models that are gone share one label', async () => {
  const { text } = await scrape();
  expect(text).not.toMatch(/fox|secret|blender|Qwen\/|gone/);
  expect(text).toContain('gantry_jobs_total{model="other",outcome="done"} 1');
});

test('a scrape counts nothing by itself', async () => {
  expect((await scrape()).text).toBe((await scrape()).text);
});

test('the tally adds up by model', () => {
  const tally = new JobTally();
  tally.done('a', 100);
  tally.done('a', 50);
  tally.failed('a', 'INTERRUPTED');
  tally.failed('a', 'INTERRUPTED');
  tally.cancelled('b');
  expect(tally.models.get('a')).toEqual({ done: 2, cancelled: 0, runMs: 150, failed: new Map([['INTERRUPTED', 2]]) });
  expect(tally.models.get('b')?.cancelled).toBe(1);
});

async function scrape() {
  let head: object = {};
  let text = '';
  const response = {
    writeHead: (_: number, headers: object) => (head = headers),
    end: (body: string) => (text = body),
  };
  await sendMetrics(response as unknown as ServerResponse, () => FACTS); // all that it uses of one
  return { head, text };
}
