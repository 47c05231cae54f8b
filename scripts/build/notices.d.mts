export function notices(metafiles: readonly { inputs: Record<string, object> }[]): Promise<string>;
