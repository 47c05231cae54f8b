import { expect, test } from 'vitest';
import { HostGpuJson, hostGpuJson } from '../../../bridge/mcp/status-json.ts';
import { gpu, host } from '../fleet/builders.ts';

function gpuJson(more: Parameters<typeof gpu>[0]) {
  const view = host('a', { snap: { gpus: [gpu(more)] } });
  return HostGpuJson.parse(JSON.parse(JSON.stringify(hostGpuJson(view, undefined)))).gpus[0];
}

test('a GPU in order has no notes', () => {
  expect(gpuJson({})).toMatchObject({ health: 'ok', is_degraded: false });
  expect(gpuJson({})).not.toHaveProperty('notes');
});

test('a GPU that cannot be used says why, whose memory is missing, and that it has the memory of the host', () => {
  const shown = gpuJson({
    isDegraded: true,
    degraded: '8000 MiB are missing',
    note: 'MIG is on',
    isUnified: true,
    unlisted: 'more',
  });
  expect(shown).toMatchObject({
    is_degraded: true,
    is_unified: true,
    notes: ['MIG is on', '8000 MiB are missing', 'more'],
  });
});
