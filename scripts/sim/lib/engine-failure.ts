/** `as` says how the failure travels: as an exception of the pipeline, inside an engine output, or with the whole engine. */
export class EngineFailure extends Error {
  readonly as: 'exception' | 'engine-output' | 'dead';

  constructor(message: string, as: EngineFailure['as']) {
    super(message);
    this.as = as;
  }
}

export function engineDead(): EngineFailure {
  return new EngineFailure('EngineCore encountered an issue. See stack trace (above) for the root cause.', 'dead');
}
