/* The part of Core ML that the shim uses, for GNUstep: test code. The declarations follow Apple's public documentation;
   `cargo xtask shim` checks every selector and class against a list made from Apple's headers. */
#ifndef WORKALIKE_COREML_H
#define WORKALIKE_COREML_H

#import <CoreVideo/CoreVideo.h>
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>

#include "coreml_bridge.h"

#ifndef NS_NOESCAPE
#define NS_NOESCAPE __attribute__((noescape))
#endif

#pragma clang assume_nonnull begin

extern NSString *const MLModelErrorDomain;
typedef NS_ENUM(NSInteger, MLModelError) { MLModelErrorGeneric = 0, MLModelErrorFeatureType = 1, MLModelErrorIO = 3 };

typedef NSString *MLModelMetadataKey;
extern MLModelMetadataKey const MLModelDescriptionKey;
extern MLModelMetadataKey const MLModelVersionStringKey;
extern MLModelMetadataKey const MLModelAuthorKey;
extern MLModelMetadataKey const MLModelLicenseKey;
extern MLModelMetadataKey const MLModelCreatorDefinedKey;

typedef NS_ENUM(NSInteger, MLFeatureType) {
  MLFeatureTypeInvalid = 0,
  MLFeatureTypeInt64 = 1,
  MLFeatureTypeDouble = 2,
  MLFeatureTypeString = 3,
  MLFeatureTypeImage = 4,
  MLFeatureTypeMultiArray = 5,
  MLFeatureTypeDictionary = 6,
  MLFeatureTypeSequence = 7,
  MLFeatureTypeState = 8
};

typedef NS_ENUM(NSInteger, MLComputeUnits) {
  MLComputeUnitsCPUOnly = 0,
  MLComputeUnitsCPUAndGPU = 1,
  MLComputeUnitsAll = 2,
  MLComputeUnitsCPUAndNeuralEngine = 3
};

typedef NS_ENUM(NSInteger, MLMultiArrayDataType) {
  MLMultiArrayDataTypeDouble = 0x10000 | 64,
  MLMultiArrayDataTypeFloat32 = 0x10000 | 32,
  MLMultiArrayDataTypeFloat16 = 0x10000 | 16,
  MLMultiArrayDataTypeInt32 = 0x20000 | 32
};

typedef NS_ENUM(NSInteger, MLMultiArrayShapeConstraintType) {
  MLMultiArrayShapeConstraintTypeUnspecified = 1,
  MLMultiArrayShapeConstraintTypeEnumerated = 2,
  MLMultiArrayShapeConstraintTypeRange = 3
};

typedef NS_ENUM(NSInteger, MLImageSizeConstraintType) {
  MLImageSizeConstraintTypeUnspecified = 0,
  MLImageSizeConstraintTypeEnumerated = 2,
  MLImageSizeConstraintTypeRange = 3
};

@class MLFeatureDescription, MLFeatureValue, MLState;

/* ---- values ---- */

@interface MLMultiArray : NSObject {
 @public
  void *_bytes;
  NSArray<NSNumber *> *_shape, *_strides;
  MLMultiArrayDataType _type;
  void (^_deallocator)(void *bytes);
  NSInteger _size;
  id _keeps;
}
@property(readonly, nonatomic) MLMultiArrayDataType dataType;
@property(readonly, nonatomic) NSArray<NSNumber *> *shape;
@property(readonly, nonatomic) NSArray<NSNumber *> *strides;
@property(readonly, nonatomic) void *dataPointer __attribute__((deprecated("use getBytesWithHandler:")));
- (nullable instancetype)initWithDataPointer:(void *)dataPointer
                                       shape:(NSArray<NSNumber *> *)shape
                                    dataType:(MLMultiArrayDataType)dataType
                                     strides:(NSArray<NSNumber *> *)strides
                                 deallocator:(void (^_Nullable)(void *bytes))deallocator
                                       error:(NSError **)error;
- (void)getBytesWithHandler:(void(NS_NOESCAPE ^)(const void *bytes, NSInteger size))handler;
- (void)getMutableBytesWithHandler:(void(NS_NOESCAPE ^)(void *mutableBytes, NSInteger size,
                                                        NSArray<NSNumber *> *strides))handler;
@end

@interface MLSequence : NSObject {
 @public
  MLFeatureType _type;
  NSArray *_values;
}
@property(readonly, nonatomic) MLFeatureType type;
@property(readonly, nonatomic) NSArray<NSString *> *stringValues;
@property(readonly, nonatomic) NSArray<NSNumber *> *int64Values;
+ (instancetype)sequenceWithStringArray:(NSArray<NSString *> *)stringValues;
+ (instancetype)sequenceWithInt64Array:(NSArray<NSNumber *> *)int64Values;
@end

@interface MLFeatureValue : NSObject {
 @public
  MLFeatureType _type;
  int64_t _int64;
  double _double;
  id _object; /* NSString, MLMultiArray, NSDictionary, MLSequence */
  CVPixelBufferRef _pixels;
}
@property(readonly, nonatomic) MLFeatureType type;
@property(readonly, nonatomic, getter=isUndefined) BOOL undefined;
@property(readonly, nonatomic) int64_t int64Value;
@property(readonly, nonatomic) double doubleValue;
@property(readonly, nonatomic, copy) NSString *stringValue;
@property(readonly, nonatomic, nullable) MLMultiArray *multiArrayValue;
@property(readonly, nonatomic) NSDictionary<id<NSCopying>, NSNumber *> *dictionaryValue;
@property(readonly, nonatomic, nullable) CVPixelBufferRef imageBufferValue;
@property(readonly, nonatomic, nullable) MLSequence *sequenceValue;
+ (instancetype)featureValueWithInt64:(int64_t)value;
+ (instancetype)featureValueWithDouble:(double)value;
+ (instancetype)featureValueWithString:(NSString *)value;
+ (instancetype)featureValueWithMultiArray:(MLMultiArray *)value;
+ (instancetype)featureValueWithPixelBuffer:(CVPixelBufferRef)value;
+ (instancetype)featureValueWithSequence:(MLSequence *)sequence;
+ (nullable instancetype)featureValueWithDictionary:(NSDictionary<id<NSCopying>, NSNumber *> *)value
                                              error:(NSError **)error;
@end

@protocol MLFeatureProvider
@property(readonly, nonatomic) NSSet<NSString *> *featureNames;
- (nullable MLFeatureValue *)featureValueForName:(NSString *)featureName;
@end

@interface MLDictionaryFeatureProvider : NSObject <MLFeatureProvider> {
 @public
  NSDictionary<NSString *, MLFeatureValue *> *_values;
}
- (nullable instancetype)initWithDictionary:(NSDictionary<NSString *, id> *)dictionary error:(NSError **)error;
@end

@protocol MLBatchProvider
@property(readonly, nonatomic) NSInteger count;
- (id<MLFeatureProvider>)featuresAtIndex:(NSInteger)index;
@end

@interface MLArrayBatchProvider : NSObject <MLBatchProvider> {
 @public
  NSArray<id<MLFeatureProvider>> *_rows;
}
- (instancetype)initWithFeatureProviderArray:(NSArray<id<MLFeatureProvider>> *)array;
@end

/* ---- descriptions ---- */

@interface MLMultiArrayShapeConstraint : NSObject {
 @public
  MLMultiArrayShapeConstraintType _type;
  NSArray *_ranges, *_shapes;
}
@property(readonly, nonatomic) MLMultiArrayShapeConstraintType type;
@property(readonly, nonatomic) NSArray<NSValue *> *sizeRangeForDimension;
@property(readonly, nonatomic) NSArray<NSArray<NSNumber *> *> *enumeratedShapes;
@end

@interface MLMultiArrayConstraint : NSObject {
 @public
  NSArray<NSNumber *> *_shape;
  MLMultiArrayDataType _type;
  MLMultiArrayShapeConstraint *_flexible;
}
@property(readonly, nonatomic) NSArray<NSNumber *> *shape;
@property(readonly, nonatomic) MLMultiArrayDataType dataType;
@property(readonly, nonatomic) MLMultiArrayShapeConstraint *shapeConstraint;
@end

@interface MLStateConstraint : NSObject {
 @public
  NSArray<NSNumber *> *_shape;
  MLMultiArrayDataType _type;
}
@property(readonly, nonatomic) NSArray<NSNumber *> *bufferShape;
@property(readonly, nonatomic) MLMultiArrayDataType dataType;
@end

@interface MLImageSize : NSObject {
 @public
  NSInteger _wide, _high;
}
@property(readonly, nonatomic) NSInteger pixelsWide;
@property(readonly, nonatomic) NSInteger pixelsHigh;
@end

@interface MLImageSizeConstraint : NSObject {
 @public
  MLImageSizeConstraintType _type;
  NSRange _wide, _high;
  NSArray<MLImageSize *> *_sizes;
}
@property(readonly, nonatomic) MLImageSizeConstraintType type;
@property(readonly, nonatomic) NSRange pixelsWideRange;
@property(readonly, nonatomic) NSRange pixelsHighRange;
@property(readonly, nonatomic) NSArray<MLImageSize *> *enumeratedImageSizes;
@end

@interface MLImageConstraint : NSObject {
 @public
  NSInteger _wide, _high;
  OSType _format;
  MLImageSizeConstraint *_flexible;
}
@property(readonly, nonatomic) NSInteger pixelsWide;
@property(readonly, nonatomic) NSInteger pixelsHigh;
@property(readonly, nonatomic) OSType pixelFormatType;
@property(readonly, nonatomic) MLImageSizeConstraint *sizeConstraint;
@end

@interface MLDictionaryConstraint : NSObject {
 @public
  MLFeatureType _key;
}
@property(readonly, nonatomic) MLFeatureType keyType;
@end

@interface MLSequenceConstraint : NSObject {
 @public
  MLFeatureDescription *_element;
  NSRange _count;
}
@property(readonly, nonatomic) MLFeatureDescription *valueDescription;
@property(readonly, nonatomic) NSRange countRange;
@end

@interface MLFeatureDescription : NSObject {
 @public
  NSString *_name;
  MLFeatureType _type;
  BOOL _optional;
  id _constraint;
}
@property(readonly, nonatomic, copy) NSString *name;
@property(readonly, nonatomic) MLFeatureType type;
@property(readonly, nonatomic, getter=isOptional) BOOL optional;
@property(readonly, nonatomic, nullable) MLMultiArrayConstraint *multiArrayConstraint;
@property(readonly, nonatomic, nullable) MLImageConstraint *imageConstraint;
@property(readonly, nonatomic, nullable) MLDictionaryConstraint *dictionaryConstraint;
@property(readonly, nonatomic, nullable) MLSequenceConstraint *sequenceConstraint;
@property(readonly, nonatomic, nullable) MLStateConstraint *stateConstraint;
@end

@interface MLModelDescription : NSObject {
 @public
  NSDictionary<NSString *, MLFeatureDescription *> *_inputs, *_outputs, *_states;
  NSString *_predicted, *_probabilities;
  NSDictionary *_metadata;
  NSArray *_labels;
}
@property(readonly, nonatomic) NSDictionary<NSString *, MLFeatureDescription *> *inputDescriptionsByName;
@property(readonly, nonatomic) NSDictionary<NSString *, MLFeatureDescription *> *outputDescriptionsByName;
@property(readonly, nonatomic) NSDictionary<NSString *, MLFeatureDescription *> *stateDescriptionsByName;
@property(readonly, nonatomic, nullable, copy) NSString *predictedFeatureName;
@property(readonly, nonatomic, nullable, copy) NSString *predictedProbabilitiesName;
@property(readonly, nonatomic) NSDictionary<MLModelMetadataKey, id> *metadata;
@property(readonly, nonatomic, nullable, copy) NSArray *classLabels;
@end

/* ---- models ---- */

typedef NS_ENUM(NSInteger, MLReshapeFrequencyHint) {
  MLReshapeFrequencyHintFrequent = 0,
  MLReshapeFrequencyHintInfrequent = 1
};

typedef NS_ENUM(NSInteger, MLSpecializationStrategy) {
  MLSpecializationStrategyDefault = 0,
  MLSpecializationStrategyFastPrediction = 1
};

@interface MLOptimizationHints : NSObject <NSCopying> {
 @public
  MLReshapeFrequencyHint _reshape;
  MLSpecializationStrategy _strategy;
}
@property(readwrite, assign, nonatomic) MLReshapeFrequencyHint reshapeFrequency;
@property(readwrite, assign, nonatomic) MLSpecializationStrategy specializationStrategy;
@end

@interface MLModelConfiguration : NSObject {
 @public
  MLComputeUnits _units;
  BOOL _low_precision;
  NSString *_function, *_display;
  MLOptimizationHints *_hints;
  id<MTLDevice> _device;
}
@property(readwrite, nonatomic, nullable, retain) id<MTLDevice> preferredMetalDevice;
@property(readwrite, nonatomic, copy) MLOptimizationHints *optimizationHints;
@property(readwrite, nonatomic) MLComputeUnits computeUnits;
@property(readwrite, nonatomic) BOOL allowLowPrecisionAccumulationOnGPU;
@property(readwrite, nonatomic, nullable, copy) NSString *functionName;
@property(readwrite, nonatomic, nullable, copy) NSString *modelDisplayName;
@end

@interface MLPredictionOptions : NSObject {
 @public
  NSDictionary *_backings;
}
@property(readwrite, nonatomic, copy) NSDictionary<NSString *, id> *outputBackings;
@end

@interface MLState : NSObject {
 @public
  const CmlBridge *_bridge;
  CmlState *_state;
  NSSet<NSString *> *_names;
}
- (void)getMultiArrayForStateNamed:(NSString *)stateName handler:(void(NS_NOESCAPE ^)(MLMultiArray *buffer))handler;
@end

@class MLModelAsset;

@interface MLModel : NSObject {
 @public
  const CmlBridge *_bridge;
  CmlModel *_model;
  MLModelDescription *_description;
}
@property(readonly, nonatomic) MLModelDescription *modelDescription;
+ (nullable instancetype)modelWithContentsOfURL:(NSURL *)url
                                  configuration:(MLModelConfiguration *)configuration
                                          error:(NSError **)error;
+ (nullable NSURL *)compileModelAtURL:(NSURL *)modelURL
                                error:(NSError **)error __attribute__((deprecated("there is an asynchronous one")));
- (nullable id<MLFeatureProvider>)predictionFromFeatures:(id<MLFeatureProvider>)input
                                                 options:(MLPredictionOptions *)options
                                                   error:(NSError **)error;
- (nullable id<MLFeatureProvider>)predictionFromFeatures:(id<MLFeatureProvider>)inputFeatures
                                              usingState:(MLState *)state
                                                 options:(MLPredictionOptions *)options
                                                   error:(NSError **)error;
- (void)predictionFromFeatures:(id<MLFeatureProvider>)input
                       options:(MLPredictionOptions *)options
             completionHandler:(void (^)(id<MLFeatureProvider> _Nullable output,
                                         NSError *_Nullable error))completionHandler;
- (void)predictionFromFeatures:(id<MLFeatureProvider>)inputFeatures
                    usingState:(MLState *)state
                       options:(MLPredictionOptions *)options
             completionHandler:(void (^)(id<MLFeatureProvider> _Nullable output,
                                         NSError *_Nullable error))completionHandler;
- (nullable id<MLBatchProvider>)predictionsFromBatch:(id<MLBatchProvider>)inputBatch
                                             options:(MLPredictionOptions *)options
                                               error:(NSError **)error;
- (MLState *)newState;
+ (void)loadModelAsset:(MLModelAsset *)asset
         configuration:(MLModelConfiguration *)configuration
     completionHandler:(void (^)(MLModel *_Nullable model, NSError *_Nullable error))handler;
@end

@interface MLModelAsset : NSObject {
 @public
  NSArray<NSString *> *_functions;
  NSData *_specification; /* of an asset from memory, with the files that it names */
  NSDictionary<NSURL *, NSData *> *_files;
}
+ (nullable instancetype)modelAssetWithSpecificationData:(NSData *)specificationData error:(NSError **)error;
+ (nullable instancetype)modelAssetWithSpecificationData:(NSData *)specificationData
                                             blobMapping:(NSDictionary<NSURL *, NSData *> *)blobMapping
                                                   error:(NSError **)error;
+ (nullable instancetype)modelAssetWithURL:(NSURL *)compiledModelURL error:(NSError **)error;
- (void)functionNamesWithCompletionHandler:(void (^)(NSArray<NSString *> *_Nullable functionNames,
                                                     NSError *_Nullable error))handler;
@end

/* ---- structure ---- */

/* Every part holds what the delegate says of it, as parsed JSON. */
#define WORKALIKE_PART(name, super_) \
  @interface name : super_ {         \
   @public                           \
    NSDictionary *_json;             \
  }

WORKALIKE_PART(MLModelStructureProgramNamedValueType, NSObject)
@property(readonly, nonatomic, copy) NSString *name;
@end

@interface MLModelStructureProgramValue : NSObject
@end

WORKALIKE_PART(MLModelStructureProgramBinding, NSObject)
@property(readonly, nonatomic, copy, nullable) NSString *name;
@property(readonly, nonatomic, nullable) MLModelStructureProgramValue *value;
@end

WORKALIKE_PART(MLModelStructureProgramArgument, NSObject)
@property(readonly, nonatomic, copy) NSArray<MLModelStructureProgramBinding *> *bindings;
@end

@class MLModelStructureProgramBlock;
WORKALIKE_PART(MLModelStructureProgramOperation, NSObject)
@property(readonly, nonatomic, copy) NSString *operatorName;
@property(readonly, nonatomic, copy) NSDictionary<NSString *, MLModelStructureProgramArgument *> *inputs;
@property(readonly, nonatomic, copy) NSArray<MLModelStructureProgramNamedValueType *> *outputs;
@property(readonly, nonatomic, copy) NSArray<MLModelStructureProgramBlock *> *blocks;
@end

WORKALIKE_PART(MLModelStructureProgramBlock, NSObject)
@property(readonly, nonatomic, copy) NSArray<MLModelStructureProgramNamedValueType *> *inputs;
@property(readonly, nonatomic, copy) NSArray<NSString *> *outputNames;
@property(readonly, nonatomic, copy) NSArray<MLModelStructureProgramOperation *> *operations;
@end

WORKALIKE_PART(MLModelStructureProgramFunction, NSObject)
@property(readonly, nonatomic, copy) NSArray<MLModelStructureProgramNamedValueType *> *inputs;
@property(readonly, nonatomic) MLModelStructureProgramBlock *block;
@end

WORKALIKE_PART(MLModelStructureProgram, NSObject)
@property(readonly, nonatomic, copy) NSDictionary<NSString *, MLModelStructureProgramFunction *> *functions;
@end

WORKALIKE_PART(MLModelStructureNeuralNetworkLayer, NSObject)
@property(readonly, nonatomic, copy) NSString *name;
@property(readonly, nonatomic, copy) NSString *type;
@property(readonly, nonatomic, copy) NSArray<NSString *> *inputNames;
@property(readonly, nonatomic, copy) NSArray<NSString *> *outputNames;
@end

WORKALIKE_PART(MLModelStructureNeuralNetwork, NSObject)
@property(readonly, nonatomic, copy) NSArray<MLModelStructureNeuralNetworkLayer *> *layers;
@end

@class MLModelStructure;
WORKALIKE_PART(MLModelStructurePipeline, NSObject)
@property(readonly, nonatomic, copy) NSArray<MLModelStructure *> *subModels;
@end

WORKALIKE_PART(MLModelStructure, NSObject)
@property(readonly, nonatomic, nullable) MLModelStructureNeuralNetwork *neuralNetwork;
@property(readonly, nonatomic, nullable) MLModelStructureProgram *program;
@property(readonly, nonatomic, nullable) MLModelStructurePipeline *pipeline;
+ (void)loadContentsOfURL:(NSURL *)url
        completionHandler:(void (^)(MLModelStructure *_Nullable modelStructure, NSError *_Nullable error))handler;
@end

/* ---- devices ---- */

@protocol MLComputeDeviceProtocol <NSObject>
@end
@interface MLCPUComputeDevice : NSObject <MLComputeDeviceProtocol>
@end
@interface MLGPUComputeDevice : NSObject <MLComputeDeviceProtocol>
@property(readonly, nonatomic) id<MTLDevice> metalDevice;
@end
@interface MLNeuralEngineComputeDevice : NSObject <MLComputeDeviceProtocol>
@property(readonly, nonatomic) NSInteger totalCoreCount;
@end
NSArray<id<MLComputeDeviceProtocol>> *MLAllComputeDevices(void);

/* ---- compute plans ---- */

WORKALIKE_PART(MLComputePlanDeviceUsage, NSObject)
@property(readonly, nonatomic, copy) NSArray<id<MLComputeDeviceProtocol>> *supportedComputeDevices;
@property(readonly, nonatomic) id<MLComputeDeviceProtocol> preferredComputeDevice;
@end

WORKALIKE_PART(MLComputePlanCost, NSObject)
@property(readonly, nonatomic) double weight;
@end

WORKALIKE_PART(MLComputePlan, NSObject)
@property(readonly, nonatomic) MLModelStructure *modelStructure;
+ (void)loadContentsOfURL:(NSURL *)url
            configuration:(MLModelConfiguration *)configuration
        completionHandler:(void (^)(MLComputePlan *_Nullable computePlan, NSError *_Nullable error))handler;
- (nullable MLComputePlanDeviceUsage *)computeDeviceUsageForMLProgramOperation:
    (MLModelStructureProgramOperation *)operation;
- (nullable MLComputePlanCost *)estimatedCostOfMLProgramOperation:(MLModelStructureProgramOperation *)operation;
- (nullable MLComputePlanDeviceUsage *)computeDeviceUsageForNeuralNetworkLayer:
    (MLModelStructureNeuralNetworkLayer *)layer;
@end

#pragma clang assume_nonnull end

#endif
