import type { JobClass, JobRequest } from '../../shared/job.ts';

/** One image of a batch. `inputFiles` are the paths of `request.inputs`, in the same order. */
export type NewJob = {
  index: number;
  request: JobRequest;
  inputFiles?: readonly string[];
  directory: string;
  name: string | undefined;
};

export type BatchKind = 'generate' | 'edit';
export type BatchSequence = 'longest-first' | 'fifo';

/** What one call asks for. Everything in it is frozen when the manifest is written. */
export type BatchOrder = {
  kind: BatchKind;
  class: JobClass;
  jobs: NewJob[];
  order: BatchSequence;
  maxConcurrent: number | undefined;
  host: string | undefined;
  client: string;
};
