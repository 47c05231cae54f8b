import type { HostView } from '../../../bridge/fleet/host-view.ts';
import type { SlotPhase } from '../../../shared/host-snapshot.ts';
import type { GenerateRequest } from '../../../shared/job.ts';
import type { ServiceTime } from '../../../shared/service-time.ts';
import { workUnits } from '../../../shared/service-time.ts';

export const MODEL = 'virtual/model';
/** One unit of work, as in shared/service-time.ts, at speed 1. */
export const UNIT_MS = 100;

export type VirtualStatus = {
  service: ServiceTime;
  phase: SlotPhase;
  freeInMs: number;
  offered?: { count: number; workMs: number; sessions: number };
};

/** What a bridge knows of a host with one GPU and one model that is ready. */
export function hostView(at: number, { service, phase, freeInMs, offered }: VirtualStatus): HostView {
  return {
    name: `h${at}`,
    url: '',
    link: { kind: 'up', latencyMs: 1 },
    statusAgeMs: 0,
    transferMs: 0,
    snapshot: {
      ...{ agentId: `h${at}`, hostname: `h${at}`, agentVersion: '0', isSimulated: true, isDraining: false },
      ...{ driver: null, problems: [], memory: { totalMiB: 64_000, freeMiB: 64_000 }, disk: { freeMiB: 100_000 } },
      gpus: [
        {
          ...{ uuid: 'g', index: 0, name: 'virtual', totalMiB: 80_000, usedMiB: 20_000, freeMiB: 60_000 },
          ...{ utilisationPercent: 0, temperatureC: 40, powerW: 100, health: 'ok', ageMs: 0, isDegraded: false },
          ...{ oursMiB: 20_000, foreign: [] },
        },
      ],
      models: [
        {
          ...{ model: MODEL, alias: 'virtual', engine: 'vllm-omni', isAttached: false, profileFrom: 'shipped' },
          ...{ state: 'ready', gpus: ['g'], heldMiB: 20_000, isPinned: false, loadedMiB: 20_000, peakMiB: 30_000 },
          ...{ isMeasured: true, loadMs: 40_000, wakeMs: 2_000, idleMs: 0, heldAwayMs: 0, jobsDone: 0, loads: 0 },
          ...{ offloads: 0, releases: 0, service },
          profile: {
            ...{ model: MODEL, type: 'standard', capabilities: ['generate'], steps: 10, maxSteps: 100 },
            ...{ guidance: { field: 'guidance_scale', value: 4 }, guidanceOff: 0, supportsNegativePrompt: true },
            ...{ width: 1024, height: 1024, multiple: 16, maxMegapixels: 4, aspectRatios: {}, maxInputs: 0 },
            ...{ hasSizeLevel: false, weightsMiB: 20_000, peakMiB: 30_000, stepMs: 100, sources: {} },
          },
          slots: [{ slotId: 's', phase, freeInMs, isCancelled: false }],
        },
      ],
      offered: offered === undefined || offered.count === 0 ? [] : [{ model: MODEL, class: 'batch', ...offered }],
    },
  };
}

/** A job that takes so long at speed 1. */
export function jobOf(
  workMs: number,
  id: string,
): { id: string; request: GenerateRequest; units: number; workMs: number } {
  const request: GenerateRequest = {
    ...{ kind: 'generate', model: MODEL, prompt: id, steps: workMs / UNIT_MS, seed: 1, format: 'png' },
    guidance: { field: 'guidance_scale', value: 4 },
    width: 1000,
    height: 1000,
  };
  return { id, request, units: workUnits(request), workMs };
}
