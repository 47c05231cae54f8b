import type { HostView } from '../../../bridge/fleet/host-view.ts';
import { newRecord } from '../../../bridge/fleet/job-record.ts';
import type { JobRecord } from '../../../bridge/fleet/job-record.ts';
import type { GpuStatus, HostSnapshot, ModelStatus, SlotStatus } from '../../../shared/host-snapshot.ts';
import type { GenerateRequest } from '../../../shared/job.ts';

export const MODEL = 'acme/painter';

export function request(o: Partial<GenerateRequest> = {}): GenerateRequest {
  return {
    kind: 'generate',
    model: MODEL,
    prompt: 'a red fox',
    steps: 10,
    guidance: { field: 'guidance_scale', value: 4 },
    seed: 7,
    format: 'png',
    width: 1000,
    height: 1000,
    ...o,
  };
}

export function record(o: Partial<JobRecord> = {}): JobRecord {
  const job = newRecord({
    jobId: '11111111-1111-4111-8111-111111111111',
    index: 0,
    request: request(),
    inputFiles: [],
    directory: '/tmp',
    name: undefined,
  });
  return Object.assign(job, o);
}

export function gpu(o: Partial<GpuStatus> = {}): GpuStatus {
  return {
    uuid: 'GPU-0',
    index: 0,
    name: 'Test GPU',
    totalMiB: 80_000,
    usedMiB: 0,
    freeMiB: 80_000,
    utilisationPercent: 0,
    temperatureC: 40,
    powerW: 100,
    health: 'ok',
    ageMs: 0,
    isDegraded: false,
    oursMiB: 0,
    foreign: [],
    ...o,
  };
}

export function slot(o: Partial<SlotStatus> = {}): SlotStatus {
  return { slotId: 'painter', phase: 'idle', freeInMs: 0, isCancelled: false, ...o };
}

export function model(o: Partial<ModelStatus> = {}): ModelStatus {
  return {
    model: MODEL,
    alias: 'painter',
    engine: 'vllm-omni',
    isAttached: false,
    profile: {
      model: MODEL,
      type: 'standard',
      capabilities: ['generate'],
      steps: 10,
      maxSteps: 100,
      guidance: { field: 'guidance_scale', value: 4 },
      guidanceOff: 0,
      supportsNegativePrompt: true,
      width: 1024,
      height: 1024,
      multiple: 16,
      maxMegapixels: 4,
      aspectRatios: {},
      maxInputs: 0,
      hasSizeLevel: false,
      weightsMiB: 20_000,
      peakMiB: 30_000,
      stepMs: 100,
      sources: {},
    },
    profileFrom: 'shipped',
    state: 'ready',
    gpus: ['GPU-0'],
    heldMiB: 20_000,
    isPinned: false,
    loadedMiB: 20_000,
    peakMiB: 30_000,
    isMeasured: true,
    loadMs: 40_000,
    wakeMs: 2_000,
    service: { fixedMs: 0, unitMs: 100, samples: 5 },
    idleMs: 0,
    heldAwayMs: 0,
    jobsDone: 0,
    loads: 0,
    offloads: 0,
    releases: 0,
    slots: [slot()],
    ...o,
  };
}

export function snapshot(o: Partial<HostSnapshot> = {}): HostSnapshot {
  return {
    agentId: 'agent',
    hostname: 'host',
    agentVersion: '0.1.0',
    isSimulated: true,
    isDraining: false,
    driver: '580.1',
    problems: [],
    gpus: [gpu()],
    memory: { totalMiB: 64_000, freeMiB: 64_000 },
    disk: { freeMiB: 100_000 },
    models: [model()],
    offered: [],
    ...o,
  };
}

export function host(name: string, o: Partial<HostView> & { snap?: Partial<HostSnapshot> } = {}): HostView {
  const { snap, ...view } = o;
  return {
    name,
    url: `ws://${name}:7801`,
    link: { kind: 'up', latencyMs: 1 },
    snapshot: snapshot(snap),
    statusAgeMs: 0,
    transferMs: 0,
    ...view,
  };
}
